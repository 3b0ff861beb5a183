"""The assignment and the demo as plans, and one assignment that is killed and goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from genssl.cli import app
from genssl.commands import assignment as assignment_module
from genssl.commands._outputs import evaluation_name
from genssl.config import DDPMConfig
from genssl.data import torchvision_sets
from genssl.studies import assignment as study
from genssl.studies.assignment import SHARES, Part, assignment, steps_of
from genssl.studies.demo import demo
from genssl.studies.plan import Length, Plan, Step, fit
from genssl.training.events import silent

from ..conftest import call

PARTS = (
    Part("vae", "svhn", {"epochs": 70, "seed": 1}),
    Part("ddpm", "svhn", {"epochs": 70, "seed": 1, "network": "tiny"}),
    Part("simsiam", "cifar10", {"epochs": 10, "seed": 1, "limit": 600, "base_batch_size": None}),
)


def check(step: Step) -> None:
    """Parse a step's line as the program does, without carrying it out."""
    words = step.line(Path("nowhere"))[2:]
    program: Any = typer.main.get_command(app)
    command = program.commands[words[0]]
    context = command.make_context(words[0], words[1:])
    if "/eval/" in step.makes:
        assert step.makes == f"{words[1]}/eval/{evaluation_name(context)}.json"


TIMED = tuple(replace(part, images_per_second=100.0, seconds=60.0) for part in PARTS)


@pytest.mark.parametrize("full", [True, False])
def test_every_step_is_a_command(full: bool) -> None:
    steps = steps_of(*PARTS, full=full, device="cpu")
    for step in steps:
        check(step)
        trains = step.arguments[0] in {"train", "ablate"}
        assert step.how == (("--yes", "--device", "cpu") if trains else ("--device", "cpu"))
        assert step.cost is None
    for step in steps_of(*TIMED, full=full, device="cpu"):
        check(step)
        for seconds in (0.0, 1e9):
            check(step.fit(seconds, 1.0))
    assert len({step.makes for step in steps}) == len(steps)
    for step in demo(2.0, "auto", 0).steps:
        check(step)
        assert ("--yes" in step.how) == (step.arguments[0] == "train")


def test_a_run_is_trained_before_it_is_looked_at() -> None:
    trained: set[str] = set()
    for step in steps_of(*PARTS, device="auto"):
        if step.trains:
            trained.add(step.trains)
        named = {word for word in step.arguments[1:] if word in {"vae", "ddpm", "simsiam"}}
        assert named <= trained or step.arguments[0] == "ablate"


def test_the_figures_of_the_assignment_are_made() -> None:
    titles = " ".join(step.title for step in steps_of(*PARTS, device="auto"))
    for figures in ("1 to 3", "4", "5", "6", "7 and 8", "9", "10", "11", "12", "13"):
        assert f"(figure {figures})" in titles or f"(figures {figures})" in titles


def test_the_ddpms_samples_take_every_step_and_rather_fewer_images() -> None:
    steps = steps_of(*TIMED, full=True, device="auto")
    (drawing,) = [step for step in steps if step.arguments[:2] == ("sample", "ddpm")]
    assert drawing.arguments[2:] == ("--sampler", "ancestral")
    assert drawing.fit(0.0, 1.0).arguments[2:] == ("--sampler", "ancestral", "-n", "8")
    assert drawing.fit(0.0, 1.0).makes == "ddpm/eval/sample-n8-ancestral.json"


def test_settings_become_options() -> None:
    words = PARTS[2].options("--base")
    assert words == [
        "--data", "cifar10", "--epochs", "10", "--seed", "1", "--limit", "600",
        "--base", "base_batch_size=none",
    ]  # fmt: skip


def test_a_budget_makes_everything_smaller_and_says_so(digits: Path) -> None:
    plan = assignment(str(digits), str(digits), 0.02, "cpu", 0, silent)
    assert plan.notes[0].startswith("made for a budget of 0.02 minutes")
    for method in ("vae", "ddpm", "simsiam"):
        assert any(
            note.startswith(f"{method}: at most 10 epochs on 120 of 120 images") for note in plan.notes
        )
    train = next(step.arguments for step in plan.steps if step.trains == "ddpm")
    for name, value in DDPMConfig.with_recipe(DDPMConfig.on_a_cpu).items():
        assert f"{name}={value}" in train
    assert SHARES["vae"] + SHARES["ddpm"] + 4 * SHARES["simsiam"] < 0.75  # the rest is for measuring
    assert plan.budget == pytest.approx(1.2)
    assert plan.spent > 0
    assert any("cannot be kept here" in note for note in plan.notes)


def test_a_budget_that_cannot_be_kept_is_said_with_the_smallest_one(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def length_for(method: str, settings: dict[str, Any], seconds: float, *_: object) -> Length:
        return fit(500.0, 4000, settings["epochs"], seconds)

    monkeypatch.setattr(study, "length_for", length_for)

    def smallest(budget: float) -> float | None:
        notes = assignment(str(digits), str(digits), budget, "cpu", 0, silent).notes
        found = [
            re.search(r"cannot be kept here: the smallest possible is about ([\d.]+) min", note)
            for note in notes
        ]
        return next((float(match[1]) for match in found if match), None)

    least = smallest(0.1)
    assert least is not None
    assert 1 < least < 20
    assert smallest(0.9 * least) is not None
    assert smallest(1.05 * least) is None
    assert smallest(60.0) is None


def test_evaluations_are_full_where_there_is_time(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        study,
        "length_for",
        lambda method, settings, seconds, *_: fit(500.0, 4000, settings["epochs"], seconds),
    )
    for budget, levels, last in ((240.0, "16:256:16", "1000"), (6.0, "16:256:48", "640")):
        plan = assignment(str(digits), str(digits), budget, "cpu", 0, silent)
        (sweep,) = [step.arguments for step in plan.steps if "--sweep" in step.arguments]
        assert sweep[sweep.index("--sweep") + 1] == levels
        assert sweep[sweep.index("--until") + 1] == last
        assert ("evaluations take fewer images" in plan.notes[-1]) == (budget < 60)


def test_without_a_budget_it_has_the_assignments_size(digits: Path) -> None:
    plan = assignment(str(digits), str(digits), None, "cpu", 0, silent)
    assert plan.notes == ()
    trained = {step.trains: step.arguments for step in plan.steps if step.trains}
    for method, epochs in {"vae": "70", "ddpm": "70", "simsiam": "100"}.items():
        words = trained[method]
        assert words[words.index("--epochs") + 1] == epochs
        assert "--limit" not in words
        assert "--set" not in words


def test_data_that_cannot_be_had_end_it_before_the_first_training(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str) -> None:
        raise OSError("no network here")

    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torchvision_sets, "require_answer", refuse)
    monkeypatch.setattr(assignment_module, "_carry_out", lambda *_: pytest.fail("a training has started"))
    result = call("assignment", "--out", tmp_path / "out", "--data", digits, "--device", "cpu")
    assert result.exit_code == 1
    problem, archive = result.stderr.splitlines()[-2:]
    assert problem.startswith("genssl: cannot download cifar-10-python.tar.gz (no network here); put ")
    assert archive.startswith("  https://")
    assert not (tmp_path / "out").exists()


# The same program with a small network, short trainings and pixels as features: what is tested is the plan
SMALL_PROGRAM = """
from genssl.cli import main
from genssl.eval import feature_cache, fidelity_features
from genssl.models import unet
from genssl.studies import plan
fidelity_features.default_features = lambda device: feature_cache.PIXELS
unet.LAYOUTS["tiny"] = unet.Layout((16, 16, 16), (1, 1, 1), (False, False, False))
plan.LEAST_TRAINING = 3.0
main()
"""


@pytest.mark.slow
def test_a_killed_assignment_goes_on(digits: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "assignment", tmp_path / "log"
    asked = ["assignment", "--out", out, "--data", digits, "--ssl-data", digits, "--budget", 0.1]

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SMALL_PROGRAM, *map(str, asked)]
        with log.open("wb") as file:
            return subprocess.Popen(
                command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=file
            )

    process = start()
    while not (out / "ddpm" / "config.json").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert "the same command goes on" in log.read_text()
    before = (out / "vae" / "model.safetensors").stat().st_mtime_ns
    assert start().wait(1200) == 0, log.read_text()
    assert (out / "vae" / "model.safetensors").stat().st_mtime_ns == before
    assert all(step.is_done(out) for step in Plan.read(out).steps)
    told = json.loads(call("report", out, "--json").stdout)
    assert [figure["drawn"] for figure in told["figures"]] == [True] * 13
    assert told["problems"] == []
    assert call(*asked[:-1], 0.2).exit_code == 2  # another budget
