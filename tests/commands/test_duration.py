"""What is said of a command that trains for long, before it begins."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genssl import config as configs
from genssl.commands import _console
from genssl.environment import record_arguments
from genssl.errors import FAILED_RUN, UserError
from genssl.settings import Config
from genssl.training import estimate
from genssl.training.options import Options

from ..conftest import SMALL, call

ONCE = Options()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Trials that measure nothing: of 73,257 images 10 are trained in a second, 100 with a small network."""
    found: list[Config] = []

    def pace(config: Any, options: Options, listen: Any) -> estimate.Pace:
        found.append(config)
        small = "compact" in vars(config).values()
        return estimate.Pace(100.0 if small else 10.0, config.limit or 73_257)

    monkeypatch.setattr(estimate, "pace", pace)
    monkeypatch.setattr(estimate, "count_images", lambda config, listen: config.limit or 73_257)
    return found


def confirm(words: str, configs: Sequence[Config], how: Options = ONCE, **more: Any) -> None:
    with record_arguments(words.split()):
        _console.confirm_long(configs, how, **more)


@pytest.mark.usefixtures("tried")
def test_the_total_comes_first_and_a_smaller_command_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    confirm("train ddpm --epochs 70 --limit=60000", [configs.make("ddpm", {"epochs": 70, "limit": 60_000})])
    first, second = capsys.readouterr().err.splitlines()
    assert first == "expected: about 116 h 40 min for this training"
    assert second == (
        "smaller, about 10 min 00 s: genssl train ddpm --set network=compact --epochs 10 --limit 5100"
    )


@pytest.mark.usefixtures("tried")
def test_the_smaller_command_names_every_setting_once(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--set network=base", "--set=bs=32", "--set epochs=70", "--set lr=0.1", "--seed=3", "--yes"]
    settings = {"epochs": 70, "network": "base", "batch_size": 32, "learning_rate": 0.1, "seed": 3}
    confirm(" ".join(["train ddpm", *given]), [configs.make("ddpm", settings)])
    second = capsys.readouterr().err.splitlines()[1]
    kept = "genssl train ddpm --set lr=0.1 --seed=3 --yes --set network=compact --epochs"
    assert kept in second


@pytest.mark.usefixtures("tried")
def test_the_smaller_command_of_a_study_is_for_all_its_arms(capsys: pytest.CaptureFixture[str]) -> None:
    arms = [configs.make("simsiam", {"stop_gradient": stop}) for stop in (True, False)]
    confirm("ablate simsiam --no-stopgrad", arms, option="--base")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("expected: about ")
    assert first.endswith("for these 2 trainings")
    assert "genssl ablate simsiam --no-stopgrad --base encoder=compact --epochs" in second
    assert second.endswith("--epochs 10 --limit 2550")


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({"epochs": 1, "limit": 19_000}, Options()),  # half an hour and more, but too few to be tried
        ({"epochs": 70}, Options(max_minutes=29)),
    ],
)
def test_short_trainings_are_not_tried(settings: dict[str, Any], how: Options, tried: list[Config]) -> None:
    confirm("train vae", [configs.make("vae", settings)], how)
    assert tried == []


def test_arms_that_differ_in_their_seed_are_tried_once(tried: list[Config]) -> None:
    confirm("ablate vae", [configs.make("vae", {"seed": seed}) for seed in range(3)])
    assert len(tried) == 2  # one of them, and the smaller command


@pytest.mark.usefixtures("tried")
def test_a_time_limit_limits_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    confirm("ablate vae", [configs.make("vae", {"seed": seed}) for seed in (0, 1)], Options(max_minutes=40))
    assert "expected: about 1 h 20 min for these 2 trainings" in capsys.readouterr().err


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize(
    ("answer", "goes_on"), [("y\n", True), ("Yes\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_a_terminal_is_asked(answer: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console, "is_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(_console.TrainingScreen, "__enter__", lambda self: self)
    if goes_on:
        confirm("train vae", [configs.make("vae", {})])
        return
    with pytest.raises(UserError, match="not started; --yes starts without asking") as caught:
        confirm("train vae", [configs.make("vae", {})])
    assert caught.value.code == FAILED_RUN


def test_the_speed_of_a_few_steps(digits: Path) -> None:
    config = configs.make("vae", {"data": str(digits), "width": 4, "batch_size": 100, "limit": 110})
    found = estimate.pace(config, Options(device="cpu"))
    assert found.images == 110
    assert 1 < found.images_per_second < 1e7
    assert estimate.count_images(config) == 110


@pytest.mark.parametrize("words", [["train", "vae"], ["ablate", "vae", "--set", "z_dim=2"]])
@pytest.mark.parametrize(("more", "asked"), [([], 1), (["--yes"], 0), (["--json"], 0)])
def test_which_commands_say_it(
    words: list[str],
    more: list[str],
    asked: int,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Sequence[Config]] = []

    def stop(configs: Sequence[Config], *rest: Any) -> None:
        calls.append(configs)

    def begin(*arguments: Any) -> None:
        raise UserError("it begins")

    monkeypatch.setattr("genssl.commands.train.confirm_long", stop)
    monkeypatch.setattr("genssl.commands.study.confirm_long", stop)
    monkeypatch.setattr("genssl.training.run.start", begin)
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    result = call(*words, "--data", digits, *more, *(SMALL if words[0] == "train" else []))
    assert "it begins" in result.output
    assert len(calls) == asked
    if calls:
        assert len(calls[0]) == (1 if words[0] == "train" else 2)
