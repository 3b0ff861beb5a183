"""One run in progress: it composes the loop with the folder, the clock and what is watched."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from genssl import checkpoint
from genssl.config import Config
from genssl.data.augment import choose_views
from genssl.data.split import Split
from genssl.errors import FAILED_RUN, UserError
from genssl.models.build import build
from genssl.runtime import describe
from genssl.train.events import EpochEnded, Listener, Note, Progress, Started
from genssl.train.folder import RunFolder
from genssl.train.loop import Step, Training
from genssl.train.options import Options, should_compile
from genssl.train.sitting import Clock, StopSignals, peak_memory, readable_time
from genssl.train.watch import Watch

READ_EVERY = 1.0  # seconds between reads of the losses from the device
STEPS_BEFORE_ESTIMATE = 20


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
            whole = self.elapsed + self.clock.total() + self._seconds_left(step)
            self.listen(Note(f"expected time: {readable_time(whole)}"))
        if self.clock.since_read() >= READ_EVERY:
            self._check_finite()
            self.listen(self._progress(step))
            self.clock.mark_read()
        if step.step % self.training.steps_per_epoch == 0:
            self._end_epoch(step.epoch, whole=True)
        if self.clock.since_save() >= self.options.save_every:
            self._save()

    def _progress(self, step: Step) -> Progress:
        return Progress(
            epoch=step.epoch,
            epochs=self.config.epochs,
            step=step.step,
            total_steps=self.training.total_steps,
            images_per_second=self.clock.images_per_second(),
            losses={name: float(value) for name, value in step.losses.items()},
            seconds_left=self._seconds_left(step),
            memory_bytes=peak_memory(self.training.device),
        )

    def _seconds_left(self, step: Step) -> float:
        images = (self.training.total_steps - step.step) * self.training.batch_size
        left = images / self.clock.images_per_second()
        limit = self.options.max_minutes
        return left if limit is None else min(left, max(0.0, 60 * limit - self.clock.total()))

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
