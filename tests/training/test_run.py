"""Runs: their folder, resuming, stopping, and what must not reach them."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genssl import checkpoint, run_info
from genssl.config import DDPMConfig, VAEConfig
from genssl.data.augment import views
from genssl.data.loading import load
from genssl.errors import FAILED_RUN, UserError
from genssl.models.build import build
from genssl.models.method import Method
from genssl.report import load as load_report
from genssl.report import page
from genssl.settings import Config
from genssl.training import loop, run
from genssl.training.events import EpochEnded, Event, Note, Started, TrainingProgress
from genssl.training.monitor import Monitor, overfitting_warning
from genssl.training.options import Options
from genssl.training.run_folder import RunFolder

from ..narrow import given
from .toy import ToyConfig, ToyViews, build_toy

TINY = {"width": 4, "z_dim": 3, "mixture_components": 2, "batch_size": 16, "sample_every": 2}


def config(digits: Path, **changes: object) -> Config:
    return VAEConfig(data=str(digits), **{**TINY, "epochs": 3, **changes})


def train(config: Config, folder: Path, **options: Any) -> list[Event]:
    events: list[Event] = []
    run.start(config, Options(device="cpu", out=folder, **options), events.append)
    return events


def same_weights(first: Path, second: Path) -> None:
    for name in (run_info.MODEL, run_info.STATE):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert set(ours) == set(theirs)
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), (name, key)


def without_time(folder: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (folder / run_info.HISTORY).read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in {"seconds", "images_per_second"}} for r in records]


@pytest.mark.figures
def test_a_run_folder_holds_everything(digits: Path, tmp_path: Path) -> None:
    events = train(config(digits), tmp_path / "run")
    names = {str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("*.*")}
    assert names == {
        "config.json", "environment.json", "history.jsonl", "model.safetensors", "state.safetensors",
        "curves.png", "wall-clock.png", "samples-over-epochs.png", "reconstructions-over-epochs.png",
        "samples/epoch-002.png", "samples/epoch-003.png",
        "reconstructions/epoch-002.png", "reconstructions/epoch-003.png",
    }  # fmt: skip
    assert isinstance(events[-1], EpochEnded)
    started = next(event for event in events if isinstance(event, Started))
    assert (started.images, started.total_steps) == (120, 21)
    assert any(isinstance(event, Note) and "expected time" in event.text for event in events)
    record = json.loads((tmp_path / "run" / run_info.HISTORY).read_text().splitlines()[-1])
    assert record["loss"] == pytest.approx(record["nll"] + record["kl"], rel=1e-5)
    assert {"test_loss", "test_nll", "test_kl", "seconds", "images_per_second"} <= set(record)
    info = run_info.inspect(tmp_path / "run")
    assert (info.epoch, info.finished) == (3, True)
    assert info.metrics == {**record, "train_sharpness": info.metrics["train_sharpness"]}
    parameters = sum(p.numel() for p in build(info.config).parameters())
    assert started.parameters == started.all_parameters == parameters
    split = load(str(digits), "train")
    assert info.training == {
        "parameters": parameters, "all_parameters": parameters,
        "images": 120, "data_digest": split.digest, "monitor_digest": load(str(digits), "test").digest,
    }  # fmt: skip


def measured(losses: list[float], tests: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "loss": loss, "test_loss": test}
        for epoch, (loss, test) in enumerate(zip(losses, tests, strict=True), 1)
    ]


FALLING = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0]
RISING = measured(FALLING, [0.0, None, -3.5, None, -4.0, None, -3.0, -2.0])


def test_a_test_loss_that_has_risen_above_the_train_loss_is_remarked() -> None:
    warning = overfitting_warning(RISING, error=2.9, unit="nats per image")
    assert warning is not None
    for part in (
        "test loss, -2,",
        "6 above the train loss",
        "by chance: 5.8",
        "2 above its lowest",
        "epoch 5",
    ):
        assert part in warning, (part, warning)
    assert "(nats per image)" in warning
    renamed = [{"epoch": r["epoch"], "loss": r["loss"], "validation_loss": r["test_loss"]} for r in RISING]
    of_validation = overfitting_warning(renamed, 2.9, "nats per image", "validation")
    assert of_validation == warning.replace("the test loss", "the validation loss")
    assert overfitting_warning(renamed, 2.9, "nats per image") is None


@pytest.mark.parametrize(
    ("history", "error"),
    [
        (RISING, 3.1),  # the gap may be chance
        (RISING[:5], 0.01),  # a gap, and the test loss still falls
        (RISING[:7], 0.01),  # one uneven measurement is no rise
        (measured(FALLING, [None] * 8), 0.01),
        (measured([20 + loss for loss in FALLING], [r["test_loss"] for r in RISING]), 0.01),
        ([], 0.01),
    ],
)
def test_nothing_is_remarked_while_the_test_loss_falls_or_differs_by_chance(
    history: list[dict[str, Any]], error: float
) -> None:
    assert overfitting_warning(history, error) is None


def test_a_vae_that_overfits_says_so_at_its_end_and_in_the_report(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Monitor.held_out_losses, []

    def rising(self: Monitor, method: Method) -> dict[str, float]:
        values = real(self, method)
        calls.append(values)
        return values | {"test_loss": values["test_loss"] + 1000 * len(calls)}

    monkeypatch.setattr(Monitor, "held_out_losses", rising)
    events = train(config(digits, sample_every=1), tmp_path / "over")
    [told] = [event.text for event in events if isinstance(event, Note) and "overfitting" in event.text]
    assert "above its lowest, that of epoch 1 (nats per image)" in told
    assert run_info.inspect(tmp_path / "over").training["notes"] == [told]
    made = page.write(load_report.gather([str(tmp_path / "over")]), tmp_path / "report.html")
    assert told in made.path.read_text().replace("<wbr>", "")


def test_the_chance_in_a_test_loss_is_the_standard_error_over_its_batches(digits: Path) -> None:
    settings = config(digits)
    test = load(str(digits), "test")
    monitor = Monitor(views.Plain(), load(str(digits), "train"), test, settings)
    method = build(settings).eval()
    value = monitor.held_out_losses(method)["test_loss"]
    batches = [
        float(monitor._losses(method, given(monitor.images)[rows], None, i)["loss"].detach())
        for i, rows in enumerate((slice(0, 16), slice(16, 32)))
    ]
    assert value == pytest.approx(sum(batches) / 2)
    assert monitor.loss_error == pytest.approx(abs(batches[0] - batches[1]) / 2)


def test_a_run_starts_again_from_its_own_config(digits: Path, tmp_path: Path) -> None:
    train(config(digits, epochs=1), tmp_path / "run")
    again = run.start(
        VAEConfig.model_validate_json((tmp_path / "run" / "config.json").read_text()),
        Options(device="cpu", out=tmp_path / "again"),
    )
    same_weights(tmp_path / "run", again)


class Killed(Exception):
    """Stands for a kill: nothing of the run's own code sees it coming."""


def train_and_kill(config: Config, folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until step `at`, saving after every step, and die."""
    real = loop.Training._take_step

    def dying(
        self: loop.Training, images: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        if self.step == at:
            raise Killed
        return real(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_take_step", dying)
        with pytest.raises(Killed):
            train(config, folder, save_every=0)


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an average that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config(digits, ema_decay=0.9), folder)
    return folder


@pytest.mark.parametrize("at", [1, 6, 8, 14, 20])
def test_a_killed_run_resumes_to_the_same_end(
    digits: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    train_and_kill(config(digits, ema_decay=0.9), tmp_path / "cut", at, monkeypatch)
    run.resume(tmp_path / "cut", {}, Options(device="cpu", save_every=0))
    same_weights(whole, tmp_path / "cut")
    assert without_time(whole) == without_time(tmp_path / "cut")


@pytest.mark.parametrize(("at", "dropout"), [(3, 0.0), (5, 0.1)])
def test_a_killed_ddpm_run_ends_with_the_same_average(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    miniature_unet: None,
    at: int,
    dropout: float,
) -> None:
    settled = DDPMConfig(
        data=str(digits), image_size=16, network="small", batch_size=40, epochs=2, sample_every=1,
        timesteps=20, features_t=2, dropout=dropout,
    )  # fmt: skip
    assert settled.ema_decay is not None
    train(settled, tmp_path / "whole")
    train_and_kill(settled, tmp_path / "cut", at, monkeypatch)
    run.resume(tmp_path / "cut", {}, Options(device="cpu"))
    same_weights(tmp_path / "whole", tmp_path / "cut")
    assert without_time(tmp_path / "whole") == without_time(tmp_path / "cut")
    # What is written down for evaluations is the average, and not the weights that train
    state, model = (load_file(tmp_path / "cut" / name) for name in (run_info.STATE, run_info.MODEL))
    for name, value in model.items():
        assert torch.equal(value, state[f"average.module.{name}"]), name
    assert any(not torch.equal(value, state[f"method.{name}"]) for name, value in model.items())


def test_history_is_cut_back_to_the_saved_step(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        saves = iter(range(100))
        real = run.RunInProgress._save
        patch.setattr(run.RunInProgress, "_save", lambda self: real(self) if next(saves) < 9 else None)
        patch.setattr(run.RunInProgress, "_finish", lambda self: None)
        train(config(digits), tmp_path / "cut", save_every=0)
    assert len(without_time(tmp_path / "cut")) == 3  # three epochs were written, the state is of step 9
    run.resume(tmp_path / "cut", {}, Options(device="cpu"))
    train(config(digits), tmp_path / "whole")
    same_weights(tmp_path / "whole", tmp_path / "cut")
    assert without_time(tmp_path / "whole") == without_time(tmp_path / "cut")


def test_changed_settings_are_refused_by_name(digits: Path, tmp_path: Path) -> None:
    train(config(digits, epochs=1), tmp_path / "run")
    changes = {"learning_rate": 0.5, "epochs": 1}
    with pytest.raises(UserError, match=r"learning_rate was 0.0001, now 0.5\); start a new run"):
        run.resume(tmp_path / "run", changes, Options(device="cpu"))


def test_a_complete_run_says_so_and_stays_as_it_is(digits: Path, tmp_path: Path) -> None:
    train(config(digits, epochs=1), tmp_path / "run")
    before = (tmp_path / "run" / run_info.MODEL).read_bytes()
    events: list[Event] = []
    run.resume(tmp_path / "run", {}, Options(device="cpu"), events.append)
    assert any(isinstance(event, Note) and "is complete" in event.text for event in events)
    assert (tmp_path / "run" / run_info.MODEL).read_bytes() == before


def test_a_folder_in_use_is_never_overwritten(digits: Path, tmp_path: Path) -> None:
    train(config(digits, epochs=1), tmp_path / "run")
    with pytest.raises(UserError, match="exists; choose another --out"):
        train(config(digits, epochs=1), tmp_path / "run")


def test_two_processes_do_not_train_one_run(digits: Path, tmp_path: Path) -> None:
    train(config(digits, epochs=1), tmp_path / "run")
    held = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="another process is training"):
        run.resume(tmp_path / "run", {}, Options(device="cpu"))
    held.release()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.Training._forward

    def poisoned(
        self: loop.Training, images: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        losses = real(self, images, labels)
        return losses if self.step != 10 else {k: v * torch.nan for k, v in losses.items()}

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_forward", poisoned)
        with pytest.raises(UserError, match="step 11 gave a loss or gradient that is not finite") as caught:
            train(config(digits, ema_decay=0.9), tmp_path / "run")  # nothing was saved before
    assert caught.value.code == FAILED_RUN
    assert run_info.verify(tmp_path / "run") == []
    # what is kept is the state before step 11, to the bit: a cure, and the run ends as if nothing had been
    run.resume(tmp_path / "run", {}, Options(device="cpu"))
    train(config(digits, ema_decay=0.9), tmp_path / "whole")
    same_weights(tmp_path / "whole", tmp_path / "run")
    assert without_time(tmp_path / "whole") == without_time(tmp_path / "run")


def test_weights_that_are_not_finite_never_replace_a_good_state(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.Training._take_step

    def overflowing(
        self: loop.Training, images: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        losses = real(self, images, labels)
        if self.step == 9:
            next(self.method.parameters()).data.fill_(torch.inf)
        return losses

    monkeypatch.setattr(loop.Training, "_take_step", overflowing)
    with pytest.raises(UserError, match="not finite after step 9"):
        train(config(digits), tmp_path / "run", save_every=0)
    assert run_info.verify(tmp_path / "run") == []


def test_other_data_are_refused(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "data")
    few = config(tmp_path / "data", epochs=400, sample_every=0)
    train(few, tmp_path / "run", max_minutes=0.2 / 60)
    next((tmp_path / "data" / "train").rglob("*.png")).unlink()
    with pytest.raises(UserError, match=r"is not what .* was trained on"):
        run.resume(tmp_path / "run", {}, Options(device="cpu"))


def test_a_finished_run_that_lost_its_state_is_never_begun_anew(digits: Path, tmp_path: Path) -> None:
    train(config(digits), tmp_path / "run")
    (tmp_path / "run" / run_info.STATE).unlink()
    run.resume(tmp_path / "run", {}, Options(device="cpu"))  # complete: nothing to do
    train(config(digits, epochs=400, sample_every=0), tmp_path / "timed", max_minutes=0.2 / 60)
    (tmp_path / "timed" / run_info.STATE).unlink()
    before = (tmp_path / "timed" / run_info.HISTORY).read_text()
    with pytest.raises(UserError, match="has lost its state"):
        run.resume(tmp_path / "timed", {}, Options(device="cpu"))
    assert (tmp_path / "timed" / run_info.HISTORY).read_text() == before


@pytest.mark.parametrize("left", [run_info.CONFIG, run_info.HISTORY])
def test_a_run_killed_before_its_first_state_begins_again(digits: Path, tmp_path: Path, left: str) -> None:
    train(config(digits), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for file in (tmp_path / "run").glob("*"):
        if file.is_file() and file.name not in {run_info.CONFIG, left}:
            file.unlink()
    events: list[Event] = []
    run.resume(tmp_path / "run", {}, Options(device="cpu"), events.append)
    assert any("from the first step" in event.text for event in events if isinstance(event, Note))
    same_weights(tmp_path / "whole", tmp_path / "run")
    assert without_time(tmp_path / "whole") == without_time(tmp_path / "run")
    assert (tmp_path / "run" / run_info.ENVIRONMENT).exists()


def test_a_damaged_model_is_written_again_from_the_state(digits: Path, tmp_path: Path) -> None:
    train(config(digits), tmp_path / "run")
    model = tmp_path / "run" / run_info.MODEL
    whole = {name: value.clone() for name, value in load_file(model).items()}  # load_file maps the file
    model.write_bytes(model.read_bytes()[:-50])
    run.resume(tmp_path / "run", {}, Options(device="cpu"))
    assert all(torch.equal(value, whole[name]) for name, value in load_file(model).items())


def test_a_run_whose_folder_is_removed_says_so(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.Training._take_step

    def removing(
        self: loop.Training, images: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        if self.step == 5:
            shutil.rmtree(tmp_path / "run")
        return real(self, images, labels)

    monkeypatch.setattr(loop.Training, "_take_step", removing)
    with pytest.raises(UserError, match="is no run folder"):
        train(config(digits), tmp_path / "run", save_every=0)


def test_a_split_of_one_image_is_refused_and_leaves_no_folder(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs 2 or more"):
        train(config(digits, limit=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stop", "epoch", "drawn", "kept"),
    [(10, 1.43, "epoch-001.43.png", []), (14, 2, "epoch-002.png", ["epoch-002.png"])],
)
def test_a_run_ends_cleanly_when_its_time_is_up(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stop: int, epoch: float, drawn: str, kept: list[str],
) -> None:  # fmt: skip
    def time_is_up_at(step: int) -> None:
        monkeypatch.setattr(run.RunInProgress, "_out_of_time", lambda self: self.training.step >= step)

    folder = tmp_path / "run"
    time_is_up_at(stop)  # seven steps an epoch: within the second one, or with it
    events = train(config(digits, epochs=400, sample_every=399), folder)
    ways = [event.text for event in events if isinstance(event, Note) and "time is up" in event.text]
    assert ways[0].startswith(f"time is up after {epoch} of 400 epochs; `genssl train --resume {folder}")
    info = run_info.inspect(folder)
    assert (info.state, info.epoch, info.epochs_trained) == ("stopped by time", stop // 7, epoch)
    assert [event.record["epoch"] for event in events if isinstance(event, EpochEnded)][-1] == epoch
    assert without_time(folder)[-1]["epoch"] == epoch
    assert checkpoint.load(folder).has_mixture
    assert [file.name for file in (folder / "samples").iterdir()] == [drawn]
    time_is_up_at(24)
    run.resume(folder, {}, Options(device="cpu"))
    assert [record["epoch"] for record in without_time(folder)] == [1, 2, 3, 3.43]
    # the picture of an epoch that had not ended is gone, that of a whole one stays
    assert sorted(file.name for file in (folder / "samples").iterdir()) == [*kept, "epoch-003.43.png"]


def test_minutes_are_counted(digits: Path, tmp_path: Path) -> None:
    events = train(config(digits, epochs=4000, sample_every=0), tmp_path / "run", max_minutes=0.5 / 60)
    assert any(isinstance(event, Note) and "time is up" in event.text for event in events)
    assert not (tmp_path / "run" / "samples").exists()


def test_the_toy_method_needs_no_change_to_the_loop(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "build", build_toy)
    monkeypatch.setattr(run, "choose_views", lambda config, classes: {"toy": ToyViews()}[config.views])
    assert views.choose_views(VAEConfig())
    events = train(ToyConfig(data=str(digits), sample_every=1, ema_decay=0.9), tmp_path / "toy")
    assert (tmp_path / "toy" / "inputs-over-epochs.png").exists()
    record = next(event.record for event in events if isinstance(event, EpochEnded))
    assert {"loss", "distance", "test_distance"} <= set(record)


def test_progress_is_reported_with_speed_and_time_left(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "READ_EVERY", 0.0)
    events = train(config(digits), tmp_path / "run")
    last = [event for event in events if isinstance(event, TrainingProgress)][-1]
    assert (last.epoch, last.step, last.total_steps) == (3, 21, 21)
    assert last.seconds_left == 0
    assert last.images_per_second > 0
    assert last.memory_bytes > 0


def command(digits: Path, folder: Path, *more: str) -> list[str]:
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    return [
        sys.executable, "-m", "genssl", "train", "vae", "--data", str(digits), "--epochs", "30",
        "--save-every", "0", "--device", "cpu", "--out", str(folder), *settings, *more,
    ]  # fmt: skip


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not file.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert file.exists(), process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_first(digits: Path, tmp_path: Path, number: int, code: int) -> None:
    words = command(digits, tmp_path / "run")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "run" / run_info.STATE, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "stopped and saved at step" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert run_info.verify(tmp_path / "run") == []
