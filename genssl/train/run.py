"""Composes a run and owns its folder: start, resume, save, watch, finish."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genssl import checkpoint
from genssl.config import Config, differences
from genssl.data.augment import choose_views
from genssl.data.load import load
from genssl.data.split import Split
from genssl.errors import FAILED_RUN, UserError
from genssl.models.build import build
from genssl.runtime import choose_device, describe
from genssl.train.events import EpochEnded, Listener, Loading, Note, Progress, Started, silent
from genssl.train.folder import RunFolder
from genssl.train.loop import Step, Training
from genssl.train.sitting import Clock, StopSignals, peak_memory, readable_time
from genssl.train.watch import Watch

READ_EVERY = 1.0  # seconds between reads of the losses from the device
STEPS_BEFORE_ESTIMATE = 20
COMPILE_PAYS_AFTER = 2000  # steps on CUDA: compiling costs about a minute


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its weights.

    Attributes:
        device: auto, cpu, cuda, cuda:1, mps.
        save_every: seconds between saved states; 0 saves after every step.
        max_minutes: end the run cleanly after so long.
        compile: one graph for views, network and losses; auto: on CUDA, for runs long enough to pay.
        tag: added to the run's name.
        out: the run folder, instead of a new one in checkpoints/.
    """

    device: str = "auto"
    save_every: float = 60.0
    max_minutes: float | None = None
    compile: Literal["auto", "on", "off"] = "auto"
    tag: str | None = None
    out: Path | None = None


def start(config: Config, options: Options, listen: Listener = silent) -> Path:
    """Train a new run to its end; returns its folder.

    Raises:
        UserError: the data or device is not to be had, the run was stopped, or a loss was not finite.
    """
    device = choose_device(options.device)
    train, test = load_splits(config, device, listen)
    folder = RunFolder(checkpoint.new_folder(config, options.tag, options.out))
    try:
        folder.write_start(config, device)
        return Run(config, options, listen, folder, train, test).go()
    finally:
        folder.release()


def resume(path: Path, changes: Mapping[str, Any], options: Options, listen: Listener = silent) -> Path:
    """Continue an interrupted run from its last saved step; returns its folder.

    Args:
        path: the run folder.
        changes: settings asked for; each must equal the run's own.
        options: as for `start`; tag and out are the run's own.
        listen: told what happens.

    Raises:
        UserError: it is no run, a setting differs, or as in `start`.
    """
    if not path.is_dir():
        raise UserError(f"no run folder {path} to resume; `genssl runs list` names them")
    folder = RunFolder(path)
    try:
        config = folder.read_config()
        _refuse_changes(config, changes)
        train, test = load_splits(config, choose_device(options.device), listen)
        run = Run(config, options, listen, folder, train, test)
        run.restore()
        if run.is_complete():
            listen(Note(f"{path} is complete: all {config.epochs} epochs are done, nothing is left to do"))
            return path
        return run.go()
    finally:
        folder.release()


def load_splits(config: Config, device: torch.device, listen: Listener) -> tuple[Split, Split]:
    """The config's train split, limited, and its test split, on the device."""

    def load_part(part: Literal["train", "test"]) -> Split:
        return load(
            config.data,
            part,
            image_size=config.image_size,
            seed=config.seed,
            skip_bad=config.skip_bad,
            progress=lambda text, done, total: listen(Loading(text, done, total)),
        )

    train = load_part("train").take(config.limit, config.seed)
    return train.to(device), load_part("test").to(device)


def should_compile(options: Options, device: torch.device, steps: int) -> bool:
    """Whether compiling is asked for, or pays."""
    if options.compile == "auto":
        return device.type == "cuda" and steps >= COMPILE_PAYS_AFTER
    return options.compile == "on"


def _refuse_changes(config: Config, changes: Mapping[str, Any]) -> None:
    changed = differences(config, config.updated(changes))
    if changed:
        lines = [f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items()]
        raise UserError(f"cannot resume with other settings ({'; '.join(lines)}); start a new run for them")


class Run:
    """One run in progress."""

    def __init__(
        self,
        config: Config,
        options: Options,
        listen: Listener,
        folder: RunFolder,
        train: Split,
        test: Split,
    ) -> None:
        self.config, self.options, self.listen, self.folder = config, options, listen, folder
        device = train.images.device
        views = choose_views(config.views)
        self.training = Training(build(config).to(device), views, train, config)
        if should_compile(options, device, self.training.total_steps):
            self.training.compile()
        self.watch = Watch(views, test, config)
        self.history: list[dict[str, Any]] = []
        self.sums: dict[str, Tensor] = {}  # of this epoch's losses, times images
        self.images = 0  # seen in this epoch
        self.elapsed = 0.0  # seconds of earlier sittings
        self.clock = Clock()

    def restore(self) -> None:
        """Take up the last saved state; the history is cut back to it."""
        saved = self.folder.read_state()
        if saved is None:
            self.listen(Note("nothing was saved before the interruption: starting from the first step"))
            return
        tensors, texts = saved
        self.training.restore(tensors, texts)
        device = self.training.device
        self.sums = {k[4:]: v.to(device) for k, v in tensors.items() if k.startswith("sum.")}
        self.images, self.elapsed = int(texts["images"]), float(texts["elapsed"])
        self.history = self.folder.read_history(self.training.step, self.training.steps_per_epoch)

    def is_complete(self) -> bool:
        """Whether all steps were taken and the finished weights are on disk."""
        model = self.folder.path / checkpoint.MODEL
        done = self.training.step >= self.training.total_steps
        return done and model.exists() and checkpoint.inspect(model).finished

    def go(self) -> Path:
        """Train to the end, or to the time limit; then finish."""
        self._announce()
        with StopSignals() as signals:
            for step in self.training.steps():
                self._after_step(step)
                if signals.code is not None:
                    self._stop(signals.code)
                if self._out_of_time():
                    self.listen(
                        Note(f"time is up after {step.step / self.training.steps_per_epoch:.1f} epochs")
                    )
                    self._save()
                    self._end_epoch(step.epoch, whole=False)
                    break
            self._finish()
        return self.folder.path

    def _announce(self) -> None:
        training = self.training
        self.listen(
            Started(
                folder=self.folder.path,
                method=self.config.method,
                parameters=sum(p.numel() for p in training.method.parameters()),
                data=training.split.name,
                images=len(training.split),
                epochs=self.config.epochs,
                total_steps=training.total_steps,
                step=training.step,
                device=describe(training.device),
                precision=training.precision,
            )
        )

    def _after_step(self, step: Step) -> None:
        self.images += step.images
        for name, value in step.losses.items():
            self.sums[name] = self.sums.get(name, 0) + value * step.images
        self.clock.count(step.images)
        if self.clock.steps == STEPS_BEFORE_ESTIMATE:
            left = self._progress(step).seconds_left
            self.listen(Note(f"expected time: {readable_time(self.elapsed + self.clock.total() + left)}"))
        if self.clock.since_read() >= READ_EVERY:
            self._check_finite()
            self.listen(self._progress(step))
            self.clock.mark_read()
        if step.step % self.training.steps_per_epoch == 0:
            self._end_epoch(step.epoch, whole=True)
        if self.clock.since_save() >= self.options.save_every:
            self._save()

    def _progress(self, step: Step) -> Progress:
        rate = self.clock.images_per_second()
        left = (self.training.total_steps - step.step) * self.training.batch_size / rate
        return Progress(
            epoch=step.epoch,
            epochs=self.config.epochs,
            step=step.step,
            total_steps=self.training.total_steps,
            images_per_second=rate,
            losses={name: float(value) for name, value in step.losses.items()},
            seconds_left=left,
            memory_bytes=peak_memory(self.training.device),
        )

    def _end_epoch(self, epoch: int, *, whole: bool) -> None:
        """Write the epoch's line of the history, and look at the method when that is due."""
        if self.images == 0:
            return
        self._check_finite()
        record: dict[str, Any] = {"epoch": epoch, "step": self.training.step}
        record |= {name: float(total) / self.images for name, total in self.sums.items()}
        record["images_per_second"] = round(self.clock.images_per_second(), 1)
        due = self.watch.due(epoch) or not whole
        if due:
            record |= self.watch.measure(self.training.inference)
            self.folder.write_previews(self.watch.draw(self.training.inference), epoch)
        record["learning_rate"] = self.training.optimizer.param_groups[0]["lr"]
        record["seconds"] = round(self.elapsed + self.clock.total(), 3)
        self.history.append({k: v if math.isfinite(v) else None for k, v in record.items()})
        self.folder.write_history(self.history)
        if due:
            self.folder.write_curves(self.history)
        self.sums, self.images = {}, 0
        self.listen(EpochEnded(record))
        self.clock.open_window()

    def _check_finite(self) -> None:
        step = self.training.guard.first_bad_step()
        if step is None:
            return
        raise UserError(
            f"step {step + 1} gave a loss or gradient that is not finite; it changed nothing, and "
            f"{self.folder.path} keeps the last good state. Try a smaller learning_rate, "
            "gradient_clip=1 or precision=fp32",
            FAILED_RUN,
        )

    def _save(self) -> None:
        self._check_finite()
        tensors, texts = self.training.state()
        tensors |= {f"sum.{name}": total for name, total in self.sums.items()}
        texts |= {"images": str(self.images), "elapsed": str(self.elapsed + self.clock.total())}
        self.folder.write_state(tensors, texts)
        self._write_model(finished=False)
        self.clock.mark_saved()

    def _write_model(self, *, finished: bool) -> None:
        metrics = self.history[-1] if self.history else {}
        epoch = self.training.step // self.training.steps_per_epoch
        self.folder.write_model(self.training.inference, epoch, finished, metrics)

    def _stop(self, code: int) -> None:
        self._save()
        again = f"`genssl train --resume {self.folder.path}` continues"
        raise UserError(f"stopped and saved at step {self.training.step}; {again}", code)

    def _finish(self) -> None:
        if self.training.step >= self.training.total_steps:
            self._save()
        method = self.training.inference.eval()
        method.after_training(self.training.split.images)
        self.folder.write_contact_sheets()
        self.folder.write_curves(self.history)
        self._write_model(finished=True)

    def _out_of_time(self) -> bool:
        limit = self.options.max_minutes
        out = limit is not None and self.clock.total() >= 60 * limit
        return out and self.training.step < self.training.total_steps
