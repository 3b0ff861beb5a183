"""What a person sees of a run where there is no terminal."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from genssl.commands import _console
from genssl.commands._console import format_value, show_values
from genssl.eval.result import flatten
from genssl.training.events import EpochEnded, Note, Started, TrainingProgress

from ..conftest import call

PROGRESS = TrainingProgress(
    epoch=2, epochs=5, step=30, total_steps=100, images_per_second=1234.4, losses={"loss": 1.23456},
    seconds_left=200, memory_bytes=2**30,
)  # fmt: skip
RECORD = {"epoch": 2, "step": 40, "loss": 1.5, "test_loss": None, "images_per_second": 10.0, "seconds": 75.0}


def test_a_line_holds_epoch_step_speed_losses_memory_and_time_left() -> None:
    line = _console.describe_progress(PROGRESS)
    for part in ("epoch 2/5", "step 30/100", "1,234 images/s", "loss 1.2346", "1.00 GiB", "3 min 20 s left"):
        assert part in line


def test_plain_lines_come_at_most_every_thirty_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with _console.TrainingScreen() as screen:
        for _ in range(100):
            screen(PROGRESS)
            now += 1
        screen(Note("a sentence"))
    lines = capsys.readouterr().err.splitlines()
    assert sum("epoch 2/5" in line for line in lines) == 4  # at 0, 30, 60 and 90 seconds
    assert lines[-1] == "a sentence"


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with _console.TrainingScreen(quiet=True) as screen:
        screen(Note("a sentence"))
        screen(EpochEnded(RECORD))
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_quiet_leaves_results_warnings_and_errors(vae_run: Path, tmp_path: Path) -> None:
    words = ["reconstruct", vae_run, "-n", "2", "--out", tmp_path / "r.png"]
    loud, silent = call(*words), call("--quiet", *words)  # the same command: its picture is replaced
    assert (loud.exit_code, silent.exit_code) == (0, 0)
    assert "reconstructions: " in loud.stderr
    assert silent.stderr == ""
    assert silent.stdout == loud.stdout != ""
    wrong = call("--quiet", "reconstruct", "nothing")
    assert wrong.exit_code == 2
    assert "no run 'nothing'" in wrong.stderr
    assert call(*words).stderr == loud.stderr


def test_quiet_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console, "is_terminal", lambda: True)
    assert _console.is_live()
    with _console.quiet():
        assert not _console.is_live()


def test_quiet_keeps_warnings_and_questions(capsys: pytest.CaptureFixture[str]) -> None:
    with _console.quiet(), _console.TrainingScreen() as screen:
        screen(Note("a sentence"))
        screen(EpochEnded(RECORD))
        screen(Note("warning: a logger failed"))
        _console.confirm("expected: about 2 h")
    assert capsys.readouterr().err.splitlines() == ["warning: a logger failed", "expected: about 2 h"]


def test_an_epochs_line_leaves_out_what_is_missing() -> None:
    record = RECORD | {"split": "validation"}
    assert _console.describe_epoch(EpochEnded(record)) == _console.describe_epoch(EpochEnded(RECORD))
    assert _console.describe_epoch(EpochEnded(RECORD)) == "epoch 2: loss 1.5 (10 images/s, 1 min 15 s)"


def test_the_start_names_the_folder_and_the_device() -> None:
    started = Started(
        folder=Path("checkpoints/x"), method="vae", parameters=1234567, all_parameters=1234567, data="svhn",
        images=1000, epochs=3, total_steps=45, step=7, device="cpu", precision="bf16",
    )  # fmt: skip
    text = " ".join(_console.describe_start(started))
    for part in ("1,234,567 parameters", "1,000 images", "resumed at step 7", "checkpoints/x", "cpu, bf16"):
        assert part in text
    byol, _ = _console.describe_start(replace(started, parameters=12_484_160, all_parameters=24_441_728))
    assert "(12,484,160 trained of 24,441,728 parameters)" in byol
    assert "held out" not in text
    assert "1,000 images, and 100 held out" in _console.describe_start(replace(started, held_out=100))[0]


def test_a_list_of_mappings_is_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    show_values(
        "found", {"images": 3, "levels": [{"t": 1, "kept": 0.5}, {"t": 2, "kept": 0.25}], "none": None}
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["found"], ["images", "3"], ["levels"], ["t", "kept"], ["1", "0.5"], ["2", "0.25"]]


def test_values_are_readable() -> None:
    assert dict(flatten({"a": {"b": 1}, "c": 2})) == {"a.b": 1, "c": 2}
    assert [format_value(v) for v in (1234567, 0.123456789, [1, 2.5], True, "x")] == [
        "1,234,567", "0.123457", "1, 2.5", "True", "x",
    ]  # fmt: skip
