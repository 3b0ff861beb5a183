"""The assignment and the demo as plans, and one assignment that is killed and goes on."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
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
from genssl.report.answers.questions import NUMBERS
from genssl.runs import run_name
from genssl.studies import ablate
from genssl.studies import assignment as study
from genssl.studies.assignment import SHARES, TRAINED, TRIALS, Asked, assignment
from genssl.studies.assignment_steps import Part, steps_of
from genssl.studies.demo import demo
from genssl.studies.plan import Length, Plan, Step, fit
from genssl.training import estimate
from genssl.training.events import silent

from ..conftest import call

SHORT = {"epochs": 10, "seed": 1, "limit": 600, "base_batch_size": None}
PARTS = {
    "vae": Part("vae", "svhn", {"epochs": 70, "seed": 1}),
    "ddpm": Part("ddpm", "svhn", {"epochs": 70, "seed": 1, "network": "tiny"}),
    "ddpm-timesteps": Part("ddpm", "svhn", {"epochs": 10, "seed": 1, "network": "tiny"}),
    **{
        name: Part(name.replace("-", "_"), "cifar10", SHORT)
        for name in ("simsiam", "barlow-twins", "dssl", "vicreg", "byol")
    },
}


@pytest.fixture
def known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CPU, without trials."""
    speeds = {"vae": 900.0, "ddpm": 150.0, "simsiam": 300.0}

    def length_for(method: str, settings: dict[str, Any], seconds: float, *_: object) -> Length:
        assert settings["data"] != "svhn"
        return fit(speeds[method], 4000, settings["epochs"], seconds)

    monkeypatch.setattr(study, "length_for", length_for)


@functools.cache
def program() -> Any:
    return typer.main.get_command(app)


def check(step: Step) -> None:
    """Parse a step's line as the program does, without carrying it out."""
    words = step.line(Path("nowhere"))[2:]
    command = program().commands[words[0]]
    context = command.make_context(words[0], words[1:])
    if "/eval/" in step.makes:
        assert step.makes == f"{words[1]}/eval/{evaluation_name(context)}.json"


TIMED = {name: replace(part, images_per_second=100.0, seconds=60.0) for name, part in PARTS.items()}


def steps(
    parts: dict[str, Part] = PARTS, *, questions: Sequence[str] = NUMBERS, **more: Any
) -> tuple[Step, ...]:
    return steps_of(parts, questions=questions, **{"device": "auto", **more})


def plan_of(digits: Path, budget: float | None, **more: Any) -> Plan:
    return assignment(Asked(str(digits), str(digits), budget, "cpu", **more), silent)


@pytest.mark.parametrize("full", [True, False])
def test_every_step_is_a_command(full: bool) -> None:
    untimed = steps(full=full, device="cpu")
    for step in untimed:
        check(step)
        trains = step.arguments[0] in {"train", "ablate"}
        assert step.how == (("--yes", "--device", "cpu") if trains else ("--device", "cpu"))
        assert step.cost is None
    for step in steps(TIMED, full=full, device="cpu"):
        check(step)
        for seconds in (0.0, 1e9):
            check(step.fit(seconds, 1.0))
    assert len({step.makes for step in untimed}) == len(untimed)
    for step in demo(2.0, "auto", 0).steps:
        check(step)
        assert ("--yes" in step.how) == (step.arguments[0] == "train")


def test_a_run_is_trained_before_it_is_looked_at() -> None:
    trained: set[str] = set()
    for step in steps():
        if step.trains:
            trained.add(step.trains)
        named = {word for word in step.arguments[1:] if word in {"vae", "ddpm", "simsiam", "byol"}}
        assert named <= trained or step.arguments[0] == "ablate"


def test_the_figures_of_the_assignment_are_made() -> None:
    titles = " ".join(step.title for step in steps())
    for figures in ("1 to 3", "4", "5", "6", "7 and 8", "9", "10", "11", "12", "13"):
        assert f"(figure {figures})" in titles or f"(figures {figures})" in titles


def test_the_ddpms_samples_take_every_step_and_rather_fewer_images() -> None:
    (drawing,) = [step for step in steps(TIMED) if step.arguments[:2] == ("sample", "ddpm")]
    assert drawing.arguments[2:] == ("--sampler", "ancestral")
    assert drawing.fit(0.0, 1.0).arguments[2:] == ("--sampler", "ancestral", "-n", "8")
    assert drawing.fit(0.0, 1.0).makes == "ddpm/eval/sample-n8-ancestral.json"


def test_settings_become_options() -> None:
    words = PARTS["simsiam"].options("--base")
    assert words == [
        "--data", "cifar10", "--epochs", "10", "--seed", "1", "--limit", "600",
        "--base", "base_batch_size=none",
    ]  # fmt: skip


def test_a_budget_makes_everything_smaller_and_says_so(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "TRIAL_SECONDS", 0.5)
    plan = plan_of(digits, 0.02)
    assert plan.notes[0].startswith("made for a budget of 0.02 minutes")
    for method in SHARES:
        assert any(
            note.startswith(f"{method}: at most 10 epochs on 120 of 120 images") for note in plan.notes
        )
    train = next(step.arguments for step in plan.steps if step.trains == "ddpm")
    for name, value in DDPMConfig.with_recipe(DDPMConfig.on_a_cpu).items():
        assert f"{name}={value}" in train
    # A projector of 2048 is what 4096 is compared with
    wider = next(step.arguments for step in plan.steps if "--proj-dim" in step.arguments)
    assert {"encoder=compact", "projector_dim=2048", "predictor_hidden=512"} <= set(wider)
    trainings = sum(step.cost.planned_seconds for step in plan.steps if step.cost and step.cost.has_clock)
    assert trainings <= TRAINED * 1.2 + 1e-6  # the rest is for measuring
    assert plan.budget == pytest.approx(1.2)
    assert plan.spent > 0
    assert any("cannot be kept here" in note for note in plan.notes)


@pytest.mark.usefixtures("known_speeds")
def test_a_budget_that_cannot_be_kept_is_said_with_the_smallest_one(digits: Path) -> None:
    def smallest(budget: float) -> float | None:
        notes = plan_of(digits, budget).notes
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


@pytest.mark.usefixtures("known_speeds")
def test_evaluations_are_full_where_there_is_time(digits: Path) -> None:
    for budget, levels, last in ((240.0, "16:256:16", "1000"), (6.0, "16:256:48", "640")):
        plan = plan_of(digits, budget)
        (sweep,) = [step.arguments for step in plan.steps if "--sweep" in step.arguments]
        assert sweep[sweep.index("--sweep") + 1] == levels
        assert sweep[sweep.index("--until") + 1] == last
        assert ("evaluations take fewer images" in plan.notes[-1]) == (budget < 60)


@pytest.mark.usefixtures("known_speeds")
def test_without_a_budget_it_has_the_assignments_size(digits: Path) -> None:
    plan = plan_of(digits, None)
    assert plan.notes == ()
    trained = {step.trains: step.arguments for step in plan.steps if step.trains}
    for method, epochs in {"vae": "70", "ddpm": "70", "simsiam": "100", "byol": "100"}.items():
        words = trained[method]
        assert words[words.index("--epochs") + 1] == epochs
        assert "--limit" not in words
        assert "--set" not in words
    first = plan.steps[0]
    assert plan.fit(0, Path("nowhere")) == first  # its time is expected, and does not end it
    assert (first.expected() or 0) > 0


@pytest.mark.usefixtures("known_speeds")
def test_trainings_that_are_compared_have_the_same_length(digits: Path) -> None:
    plan = plan_of(digits, 60.0)

    def value(words: tuple[str, ...], option: str) -> str | None:
        return words[words.index(option) + 1] if option in words else None

    lines = {step.title: step.arguments for step in plan.steps}
    simsiam, byol = lines["train SimSiam"], lines["train BYOL"]
    for option in ("--epochs", "--limit", "--knn-every"):
        assert value(simsiam, option) == value(byol, option)
    for title, words in lines.items():
        if words[:2] == ("ablate", "simsiam"):
            assert value(words, "--epochs") == value(simsiam, "--epochs"), title
    clocks = [step.cost for step in plan.steps if step.cost and step.cost.has_clock]
    assert sum(cost.trainings for cost in clocks) == 2 + 5 + 4 + 2 + 4 + 4 + 1
    assert 0.9 * TRAINED * 3600 < sum(cost.planned_seconds for cost in clocks) <= TRAINED * 3600 + 1e-6
    assert TRIALS.keys() == SHARES.keys()


def test_a_step_of_several_trainings_gives_each_its_part_of_the_time() -> None:
    (ablation,) = [step for step in steps(TIMED) if step.arguments[:2] == ("ablate", "vicreg")]
    assert ablation.cost is not None
    assert ablation.cost.trainings == 4
    fitted = ablation.fit(240.0, 1.0)
    assert fitted.how[fitted.how.index("--max-minutes") + 1] == "1.000"
    assert fitted.clock == 240.0
    assert Step(**vars(replace(ablation))) == ablation


@pytest.mark.parametrize(
    ("questions", "commands"),
    [
        (("2.3 b",), ["train vae", "train ddpm", "probe ddpm"]),
        (("3.7",), ["ablate vicreg"]),
        (("3.8",), ["train simsiam", "train byol", "compare byol"]),
        (("3.1",), ["train simsiam", "ablate simsiam"]),
        (("2.3 a",), ["ablate ddpm", "compare ddpm-svhn-baseline"]),
        (("1.2",), ["train vae", "importance-ll vae"]),
    ],
)
def test_a_question_takes_the_steps_that_it_needs(questions: tuple[str, ...], commands: list[str]) -> None:
    assert [" ".join(step.arguments[:2]) for step in steps(questions=questions)] == commands


def test_every_question_has_a_step_and_every_step_a_question() -> None:
    answered = {question for step in steps() for question in step.questions}
    assert answered == set(NUMBERS)
    assert all(step.questions for step in steps())


@pytest.mark.usefixtures("known_speeds")
def test_the_budget_of_a_question_is_that_of_all(digits: Path) -> None:
    asked = Asked("svhn", str(digits), 10.0, "cpu", questions=("3.7",))  # whose SVHN is not needed
    plan = assignment(asked, silent)
    (step,) = plan.steps
    assert step.cost is not None
    assert step.cost.planned_seconds == pytest.approx(TRAINED * 600)
    assert [note for note in plan.notes if note.startswith("ddpm")] == []


def test_the_arms_are_called_as_ablate_calls_them(digits: Path) -> None:
    part = Part("ddpm", str(digits), {"epochs": 1, "seed": 0})
    parts = {**PARTS, "ddpm-timesteps": part}
    *_, ablation, comparison = steps(parts, questions=("2.3 a",))
    baseline = part.config
    arms = ablate.arms_of(
        baseline, {}, *ablate.combinations({"timesteps": [500, 1500], "scale_betas": [False, True]})
    )
    names = [run_name(baseline.updated(arm.changes), ablate._tag(arm, 0)) for arm in arms]
    assert list(comparison.arguments[1:]) == names
    assert ablation.makes == f"ablate-ddpm-{digits.name}-timesteps-scale_betas/ablate.json"


@pytest.mark.usefixtures("known_speeds")
def test_a_dry_run_shows_the_steps_and_leaves_nothing(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(
        "assignment", "--out", out, "--data", digits, "--ssl-data", digits, "--budget", 1,
        "--only", "3.7,3.8", "--skip", "3.8", "--device", "cpu", "--dry-run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert re.search(r"1 +\S.* (s|min) +train VICReg with and without its terms: 3\.7", result.stderr)
    assert "1 step, " in result.stderr
    assert not out.exists()
    refused = call("assignment", "--out", out, "--only", "5")
    assert refused.exit_code == 2
    assert "--only '5' is no question" in refused.stderr


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
from genssl.studies import measures, plan
fidelity_features.default_features = lambda device: feature_cache.PIXELS
unet.LAYOUTS["compact"] = unet.Layout((16, 16, 16), (1, 1, 1), (False, False, False), patch=4)
measures.SAMPLING_BUDGET, plan.LEAST_TRAINING = 1e-9, 1.0
main()
"""


@pytest.mark.slow
def test_a_killed_assignment_goes_on(digits: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "assignment", tmp_path / "log"
    asked = ["assignment", "--out", out, "--data", digits, "--ssl-data", digits, "--budget", 0.1]
    asked += ["--skip", "2.3,3.5c,3.6,3.7", "--language", "fr"]

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
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<p class="answer">') >= 18
    assert "Sans stop-gradient" in page
    told = json.loads(call("report", out, "--json").stdout)
    assert [figure["drawn"] for figure in told["figures"]] == [True] * 13
    assert told["problems"] == []
    assert call(*asked, "--budget", 0.2).exit_code == 2  # another budget
