"""One run: start or resume it, report and save while it trains, and finish it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genssl import checkpoint, distributed, figures, run_info, runs
from genssl.config import EncoderConfig
from genssl.data.augment.views import choose_views, held_out_views
from genssl.data.loader import Loader, make_loader
from genssl.data.registry import absolute, describe_flips, locate, short_name
from genssl.data.rows import require_whole
from genssl.data.split import Split
from genssl.environment import restart_count
from genssl.errors import FAILED_RUN, Echo, UserError, explain
from genssl.models.build import build
from genssl.models.method import Method, count_parameters
from genssl.run_info import epochs_of, progress_of
from genssl.runtime import choose_device, describe, generator
from genssl.settings import Config
from genssl.training.events import EpochEnded, Listener, Note, Started, TrainingProgress, silent
from genssl.training.loggers import Loggers
from genssl.training.loop import LossMeter, Step, Training
from genssl.training.monitor import Monitor, baseline_warning
from genssl.training.options import (
    Options,
    checked_loggers,
    compiler_problem,
    prolongation_note,
    resume_hint,
    resumed,
    should_compile,
)
from genssl.training.run_folder import RunFolder, is_complete
from genssl.training.signals import Clock, StopSignals, format_seconds, peak_memory
from genssl.training.splits import load_splits, notes_on_start, with_classes_of

READ_EVERY = 1.0  # seconds between reads of the losses from the device
DRAW_EVERY = 30.0  # seconds between drawings of the curves
WARM_STEPS = 3  # left out of the estimate: they compile and allocate
STEPS_BEFORE_ESTIMATE = 20
OUT_OF_TIME = 1  # after a step the processes agree on this, on an exit code above it, or on 0 to go on


def start(config: Config, options: Options, listener: Listener = silent) -> Path:
    """Train a new run to its end; returns its folder.

    Where torchrun started several processes, every one of them calls this; the first one writes.

    Raises:
        UserError: the data or device is missing, the run was stopped, or a loss was not finite.
    """
    device = choose_device(options.device)
    # In functions of their own, so that the method in training is gone when the processes part
    with distributed.process_group(device):
        return _start(config, options, device, listener)


def _start(config: Config, options: Options, device: torch.device, listener: Listener) -> Path:
    if begun := _run_to_continue(config, options):
        return resume(begun, config.model_dump(), options, listener)
    run = _prepare(config, options, device, listener)
    if not distributed.is_main_process():
        return follow(run.training, run.monitor)
    _mention_unfinished(config, options, listener)
    path, lock = runs.new_folder(config, options.tag, options.out, arm=options.arm)
    folder = RunFolder(path, lock=lock)
    try:
        folder.write_start(run.config, run.training.device)
        return run.train(folder)
    finally:
        folder.release()
        folder.remove_if_empty()


def _run_to_continue(config: Config, options: Options) -> Path | None:
    """The run to continue (`auto_resume`, or a restart), the same in every process; None: start a new one."""
    path = None
    if distributed.is_main_process() and (options.auto_resume or restart_count() > 0):
        path = runs.begun(config, options.tag, options.out, arm=options.arm)
    text = distributed.broadcast(str(path or ""))
    return Path(text) if text else None


def _mention_unfinished(config: Config, options: Options, listener: Listener) -> None:
    """Say that the newest run of these settings is not at its end, since a new one is about to begin."""
    if options.out is not None:
        return
    begun = runs.begun(config, options.tag, arm=options.arm)
    if begun is not None and not is_complete(begun, config.epochs):
        ways = f"`genssl train --resume {begun}`, or this command with --auto-resume, continues it"
        listener(Note(f"{begun} is an unfinished run of these settings; {ways}. Starting a new run"))


def resume(path: Path, changes: Mapping[str, Any], options: Options, listener: Listener = silent) -> Path:
    """Continue an interrupted run from its last saved step; returns its folder.

    Args:
        path: the run folder.
        changes: settings given again; each must equal the run's own.
        options: as for `start`; tag and out are the run's own.
        listener: receives the events.

    Raises:
        UserError: it is no run, a setting differs, or as in `start`.
    """
    if not path.is_dir():
        raise UserError(f"no run folder {path} to resume; `genssl runs list` names them")
    device = choose_device(options.device)
    with distributed.process_group(device):
        return _resume(path, changes, options, device, listener)


def _resume(
    path: Path, changes: Mapping[str, Any], options: Options, device: torch.device, listener: Listener
) -> Path:
    folder = RunFolder(path, lock=distributed.is_main_process())
    try:
        before = folder.read_config()
        config = resumed(before, changes)
        if is_complete(path, config.epochs):
            listener(Note(f"{path} is complete: all {config.epochs} epochs are done, nothing is left to do"))
            return path
        if config.epochs > before.epochs:
            listener(Note(prolongation_note(before, config)))
        run = _prepare(config, options, device, listener, run_info.data_path(path), is_new=False)
        if not distributed.is_main_process():
            distributed.broadcast("")  # a state that cannot be read is said once, by the first process
        run.restore(folder)
        if not distributed.is_main_process():
            return follow(run.training, run.monitor)
        if config.epochs > before.epochs:
            folder.write_config(config)
        distributed.broadcast("")
        return run.train(folder)
    finally:
        folder.release()


def _prepare(
    config: Config,
    options: Options,
    device: torch.device,
    listener: Listener,
    recorded: str | None = None,
    *,
    is_new: bool = True,
) -> "RunInProgress":
    """Load the data and build the method; `recorded` is `run_info.data_path` of a run that is resumed."""
    checked_loggers(options.loggers)
    located = config.updated({"data": locate(config.data, recorded)})
    train, held_out = load_splits(located, listener, config.monitor_split)
    config = with_classes_of(config, train)
    loader = make_loader(train, device, options.resident_limit)
    source = recorded or absolute(config.data)
    return RunInProgress(config, options, listener, loader, held_out, source, is_new=is_new)


def follow(training: Training, monitor: Monitor) -> Path:
    """Train along with the first process, which does everything else; returns the run's folder.

    Raises:
        Echo: the run was stopped.
    """
    with StopSignals() as signals:
        folder = Path(distributed.broadcast(""))
        for step in training.steps():
            ends_epoch = step.step % training.steps_per_epoch == 0
            if ends_epoch:
                monitor.observe(training.inference, step.epoch, steps=step.step, last=False)
            code = distributed.all_reduce_max(signals.code or 0)
            if code > OUT_OF_TIME:
                raise Echo("stopped", code)
            if code == OUT_OF_TIME:
                if not ends_epoch:
                    monitor.observe(training.inference, step.epoch, steps=step.step, last=True)
                break
    monitor.baselines(training.inference, None)
    return folder


def _take_weights(method: Method, source: Path, shown: int = 5) -> list[str]:
    """Take the weights of another run, and say which differ; a resumed run has its own."""
    left = checkpoint.initialize(method, source)
    names = ", ".join(left[:shown]) + ", ..." * (len(left) > shown)
    return [f"{len(left)} weights differ in name or shape, and were not taken: {names}"] if left else []


class RunInProgress:
    """One run in progress, in one of the processes that train it."""

    folder: RunFolder  # from `train` on

    def __init__(
        self,
        config: Config,
        options: Options,
        listener: Listener,
        train: Loader,
        held_out: Split,
        data_path: str | None = None,
        *,
        is_new: bool = True,
    ) -> None:
        self.config, self.options, self.listener = config, options, listener
        self.data_path, self.monitor_digest = data_path, held_out.digest
        views = choose_views(config, train.split.classes)
        method = build(config).to(train.device)
        if is_new and config.init is not None:
            for text in (*_take_weights(method, Path(config.init)), *notes_on_start(config, held_out)):
                listener(Note(text))
        self.training = Training(method, views, train, config)
        if should_compile(options, train.device, self.training.total_steps):
            self._compile(train.device)
        self.monitor = Monitor(held_out_views(views), train.split, held_out, config, train.device)
        is_main = distributed.is_main_process()
        self.data_statistics = self.monitor.data_statistics(self.training.method) if is_main else {}
        self.history: list[dict[str, Any]] = []
        self.baselines: dict[str, float] = {}  # kNN accuracies, measured at the end
        self.notes: list[str] = []  # what the end of the training showed
        self.losses = LossMeter()  # of this epoch
        self.loggers = Loggers(listener)
        self.seconds_before = 0.0  # of training before the run was resumed
        self.clock = Clock()

    def _compile(self, device: torch.device) -> None:
        problem = compiler_problem(device)
        if problem is None:
            self.training.compile()
        elif self.options.compile == "on":
            raise UserError(f"torch.compile does not work here ({problem}); omit --compile on")
        else:
            self.listener(Note(f"warning: torch.compile does not work here ({problem}); training uncompiled"))

    def restore(self, folder: RunFolder) -> None:
        """Restore the last saved state; the history and the pictures are cut back to it.

        Raises:
            UserError: the state is damaged or lost, or the data are others than the run has seen.
        """
        saved = folder.read_state()
        if saved is None:
            # Before the first saved state there may be a history and pictures: they are made again
            if folder.is_finished():
                again = f"`genssl train --config {folder.path}` starts a new run like it"
                raise UserError(f"{folder.path} has lost its {run_info.STATE} and cannot go on; {again}")
            self.listener(Note("no state was saved before the interruption: starting from the first step"))
            if distributed.is_main_process():
                folder.begin_again(self.config, self.training.device)
            return
        tensors, texts = saved
        split = self.training.split
        if texts.get("data_digest") != split.digest:
            raise UserError(
                f"{split.name} is not what {folder.path} was trained on; "
                "bring those images back, or start a new run"
            )
        try:
            self.training.restore(tensors, texts)
            self.losses.restore(tensors, texts, self.training.device)
            self.seconds_before = float(texts["elapsed"])
            if not 0 <= self.seconds_before < math.inf:
                raise ValueError(f"{texts['elapsed']:.20} seconds")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            if explain(error) is not None:  # out of memory
                raise
            file, reason = folder.path / run_info.STATE, " ".join(str(error).split())[:200]
            raise UserError(f"{file} is no state of this run ({reason}); restore it", FAILED_RUN) from error
        self.history = folder.read_history(self.training.step, self.training.steps_per_epoch)
        if distributed.is_main_process():
            folder.remove_previews_after(self.history[-1]["epoch"] if self.history else 0)

    def train(self, folder: RunFolder) -> Path:
        """Train to the end, or to the time limit; then finish. Returns the run's folder."""
        self.folder = folder
        folder.title = figures.run_title(self.config.method, short_name(self.config.data))
        folder.units = self.training.inference.units
        folder.validated = self.config.holdout > 0
        distributed.broadcast(str(folder.path))
        self.loggers.start(self.options.loggers, folder.path, self.history, self.config)
        finished = False
        try:
            self._announce()
            self._take_steps()
            self._finish()
            finished = self.training.step >= self.training.total_steps
        finally:
            self.loggers.close(finished=finished)
        return folder.path

    def _take_steps(self) -> None:
        """All steps that are left, or those until the time limit."""
        with StopSignals() as signals:
            for step in self.training.steps():
                self._after_step(step)
                # A signal may have reached one process alone: all of them stop after the same step
                code = distributed.all_reduce_max(signals.code or (OUT_OF_TIME if self._out_of_time() else 0))
                if code > OUT_OF_TIME:
                    self._stop(code)
                if code == OUT_OF_TIME:
                    self._end_early(step)
                    break

    def _announce(self) -> None:
        training, count = self.training, distributed.world_size()
        trained, total = count_parameters(training.method)
        self.listener(
            Started(
                folder=self.folder.path,
                method=self.config.method,
                parameters=trained,
                all_parameters=total,
                data=training.split.name,
                images=len(training.split),
                held_out=self.monitor.validation_images,
                epochs=self.config.epochs,
                total_steps=training.total_steps,
                step=training.step,
                device=describe(training.device) + (f", {count} processes" if count > 1 else ""),
                precision=training.precision,
            )
        )
        if self.config.channels == 1:
            self.listener(Note("images are gray: one channel"))
        if isinstance(self.config, EncoderConfig):
            flips = describe_flips(self.config.data, training.split.classes, self.config.flip)
            if flips:
                self.listener(Note(flips))
        for remark in training.method.remarks():
            self.listener(Note(remark))

    def _seconds(self) -> float:
        """Seconds of training, with those before the run was resumed."""
        return self.seconds_before + self.clock.since_start()

    def _after_step(self, step: Step) -> None:
        self.losses.add(step.losses, step.images, self.training.guard.bad == 0)
        self.clock.add_step(step.images)
        if self.clock.steps == WARM_STEPS:
            # Waits for the device, which may have compiled
            step.losses["loss"].item()
            self.clock.restart_window()
        if self.clock.steps == STEPS_BEFORE_ESTIMATE:
            left = self._progress(step).seconds_left
            self.listener(Note(f"expected time: {format_seconds(self._seconds() + left)}"))
        if self.clock.since("read") >= READ_EVERY and self.clock.steps > WARM_STEPS:
            self._check_finite()
            self.listener(self._progress(step))
            self.clock.mark("read")
        if step.step % self.training.steps_per_epoch == 0:
            self._end_epoch(step.epoch, whole=True)
        if self.clock.since("save") >= self.options.save_every:
            self._save()

    def _progress(self, step: Step) -> TrainingProgress:
        # Waits for the device
        losses = {name: float(value) for name, value in step.losses.items()}
        images_left = (self.training.total_steps - step.step) * self.training.batch_size
        rate = self.clock.images_per_second()
        minutes = self.options.max_minutes
        limit = math.inf if minutes is None else max(0.0, 60 * minutes - self.clock.since_start())
        return TrainingProgress(
            epoch=step.epoch,
            epochs=self.config.epochs,
            step=step.step,
            total_steps=self.training.total_steps,
            images_per_second=rate,
            losses=losses,
            seconds_left=min(images_left / rate, limit),
            memory_bytes=peak_memory(self.training.device),
        )

    def _end_epoch(self, epoch: int, *, whole: bool) -> None:
        """Write the epoch's line of the history; measure and draw when that is due."""
        self._check_finite()
        trained = epochs_of(self.training.step, self.training.steps_per_epoch)
        record: dict[str, Any] = {"epoch": trained, "step": self.training.step}
        record |= self.losses.means()
        record["images_per_second"] = round(self.clock.images_per_second(), 1)
        record |= self._observe(epoch, last=not whole)
        due = self.monitor.pictures_due(epoch, last=not whole)
        previews = self.monitor.draw(self.training.inference) if due else {}
        self.folder.write_previews(previews, trained)
        record["learning_rate"] = self.training.optimizer.param_groups[0]["lr"]
        record["seconds"] = round(self._seconds(), 3)
        record = {name: value if math.isfinite(value) else None for name, value in record.items()}
        if self.config.holdout > 0:
            record["split"] = self.config.monitor_split
        if record.get("collapsed") and not (self.history and self.history[-1].get("collapsed")):
            std, rank, scale = (record[name] for name in ("output_std", "rankme", "output_scale"))
            numbers = f"std {std:.2g}, rank {rank:.2g}, scale {scale:.2g}"
            self.listener(Note(f"the output has collapsed ({numbers}); training goes on"))
        self.history.append(record)
        self.folder.write_history(self.history)
        self.loggers.epoch(record, previews)
        if due and self.clock.since("draw") >= DRAW_EVERY:
            self.folder.write_curves(self.history)
            self.clock.mark("draw")
        self.losses.reset()
        self.listener(EpochEnded(record))
        self.clock.restart_window()

    def _observe(self, epoch: int, *, last: bool) -> dict[str, Any]:
        return self.monitor.observe(self.training.inference, epoch, steps=self.training.step, last=last)

    def _check_finite(self) -> None:
        if (first := self.training.guard.first_bad_step()) is None:
            return
        self.losses.images -= (self.training.step - first) * self.training.batch_size
        self.training.rewind(first)
        if self.training.is_finite():
            self._write()
        raise UserError(
            f"step {first + 1} gave a loss or gradient that is not finite; it changed nothing, and "
            f"{self.folder.path} holds the weights before it. Try a smaller learning_rate, "
            "gradient_clip=1 or precision=fp32",
            FAILED_RUN,
        )

    def _save(self) -> None:
        self._check_finite()
        if not self.training.is_finite():
            raise UserError(
                f"the weights are not finite after step {self.training.step}; {self.folder.path} keeps "
                "what was saved before. Try a smaller learning_rate or gradient_clip=1",
                FAILED_RUN,
            )
        self._write()
        self.clock.mark("save")

    def _write(self) -> None:
        tensors, texts = self.training.state()
        totals, counts = self.losses.state()
        texts |= counts | {"elapsed": str(self._seconds())}
        self.folder.write_state(tensors | totals, {**texts, "data_digest": self.training.split.digest})
        self._write_model(finished=False)

    def _write_model(self, *, finished: bool) -> None:
        last = self.history[-1] if self.history else {}
        metrics = {**last, **self.data_statistics, **self.baselines}
        epoch = self.training.step // self.training.steps_per_epoch
        self.folder.write_model(self.training.inference, epoch, finished, metrics, self._training_record())

    def _training_record(self) -> dict[str, Any]:
        """What is trained, and on what, for the weights' metadata."""
        trained, total = count_parameters(self.training.method)
        return {
            "parameters": trained,
            "all_parameters": total,
            "images": len(self.training.split),
            "data_digest": self.training.split.digest,
            **({"classes": list(self.training.split.classes)} if self.training.method.classes else {}),
            "monitor_digest": self.monitor_digest,
            **({"data_path": self.data_path} if self.data_path else {}),
            **({"validation_images": held_out} if (held_out := self.monitor.validation_images) else {}),
            **({"notes": self.notes} if self.notes else {}),
        }

    def _stop(self, code: int) -> None:
        self._save()
        hint = resume_hint(self.folder.path, self.options)
        raise UserError(f"stopped and saved at step {self.training.step}; {hint}", code)

    def _out_of_time(self) -> bool:
        minutes = self.options.max_minutes
        is_over = minutes is not None and self.clock.since_start() >= 60 * minutes
        return is_over and self.training.step < self.training.total_steps

    def _end_early(self, step: Step) -> None:
        trained = epochs_of(step.step, self.training.steps_per_epoch)
        hint = resume_hint(self.folder.path, self.options)
        self.listener(Note(f"time is up after {progress_of(trained, self.config.epochs)} epochs; {hint}"))
        self._save()
        if self.losses.images > 0:
            self._end_epoch(step.epoch, whole=False)
        elif self.config.sample_every > 0:
            # Time ended with the epoch, whose pictures were not due
            self.folder.write_previews(self.monitor.draw(self.training.inference), step.epoch)

    def _finish(self) -> None:
        if self.training.step >= self.training.total_steps:
            self._save()
        method = self.training.inference.eval()
        require_whole(self.training.split.images)
        method.after_training(self.training.split.images, generator(self.config.seed, "after_training"))
        known = self.history[-1].get("knn_accuracy") if self.history else None
        self.baselines = self.monitor.baselines(method, known)
        warnings = (
            baseline_warning(self.baselines, self.config.monitor_split),
            self.monitor.overfitting(method, self.history),
        )
        self.notes = [warning for warning in warnings if warning]
        for note in self.notes:
            self.listener(Note(note))
        self.folder.write_contact_sheets()
        self.folder.write_curves(self.history)
        self._write_model(finished=True)
