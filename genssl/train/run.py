"""One run: start it, resume it, look after it while it trains, and finish it."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from genssl import distributed, figures, run_info, runs
from genssl.config import Config, refuse_changes
from genssl.data.augment.views import choose_views
from genssl.data.load import load
from genssl.data.loader import Loader, make_loader
from genssl.data.registry import short_name
from genssl.data.split import Split
from genssl.data.subset import limit_split
from genssl.environment import restart_count
from genssl.errors import FAILED_RUN, Echo, UserError
from genssl.models.build import build
from genssl.run_info import epochs_of, progress_of
from genssl.runtime import choose_device, describe
from genssl.train import loggers
from genssl.train.events import EpochEnded, Listener, Loading, Note, Started, TrainingProgress, silent
from genssl.train.loggers import TensorBoardLogger
from genssl.train.loop import LossMeter, Step, Training
from genssl.train.monitor import Monitor, judged
from genssl.train.options import Options, continuing, should_compile
from genssl.train.run_folder import RunFolder, is_complete
from genssl.train.signals import Clock, StopSignals, format_seconds, peak_memory

OUT_OF_TIME = 1  # what the processes agree on after a step: this, an exit code, or 0 to go on


def follow(training: Training, watch: Monitor) -> Path:
    """Train along with the first process, which does all the rest. Returns the run's folder.

    Raises:
        Echo: the run was stopped.
    """
    with StopSignals() as signals:
        folder = Path(distributed.broadcast(""))
        for step in training.steps():
            whole = step.step % training.steps_per_epoch == 0
            if whole:
                watch.observe(training.inference, step.epoch, steps=step.step, last=False)
            code = distributed.all_reduce_max(signals.code or 0)
            if code > OUT_OF_TIME:
                raise Echo("stopped", code)
            if code == OUT_OF_TIME:
                if not whole:
                    watch.observe(training.inference, step.epoch, steps=step.step, last=True)
                break
    watch.references(training.inference, None)
    return folder


READ_EVERY = 1.0  # seconds between reads of the losses from the device
DRAW_EVERY = 30.0  # seconds between drawings of the curves
WARM_STEPS = 3  # left out of the estimate: they compile and allocate
STEPS_BEFORE_ESTIMATE = 20


class RunInProgress:
    """One run in progress, in one of the processes that train it."""

    folder: RunFolder  # from `go` or `restore` on

    def __init__(
        self, config: Config, options: Options, listen: Listener, train: Loader, test: Split
    ) -> None:
        self.config, self.options, self.listen = config, options, listen
        views = choose_views(config, train.split.classes)
        self.training = Training(build(config).to(train.device), views, train, config)
        if should_compile(options, train.device, self.training.total_steps):
            self.training.compile()
        self.watch = Monitor(views, train.split, test, config, train.device)
        self.about_data = self.watch.about_data(self.training.method) if distributed.is_main_process() else {}
        self.history: list[dict[str, Any]] = []
        self.references: dict[str, float] = {}  # accuracies to judge the features by, at the end
        self.sums = LossMeter()  # of this epoch
        self.board: TensorBoardLogger | None = None
        self.elapsed = 0.0  # seconds of earlier sittings
        self.clock = Clock()

    def restore(self, folder: RunFolder) -> None:
        """Take up the last saved state; the history and the pictures are cut back to it.

        Raises:
            UserError: the state is damaged or lost, or the data are others than the run has seen.
        """
        saved = folder.read_state()
        if saved is None:
            if folder.has_results():
                again = f"`genssl train --config {folder.path}` starts a new run like it"
                raise UserError(f"{folder.path} has lost its {run_info.STATE} and cannot go on; {again}")
            self.listen(Note("nothing was saved before the interruption: starting from the first step"))
            return
        tensors, texts = saved
        split = self.training.split
        if texts["data_digest"] != split.digest:
            raise UserError(
                f"{split.name} is not what {folder.path} was trained on; "
                "bring those images back, or start a new run"
            )
        self.training.restore(tensors, texts)
        self.sums.restore(tensors, texts, self.training.device)
        self.elapsed = float(texts["elapsed"])
        self.history = folder.read_history(self.training.step, self.training.steps_per_epoch)
        if distributed.is_main_process():
            folder.remove_previews_after(self.history[-1]["epoch"] if self.history else 0)

    def go(self, folder: RunFolder) -> Path:
        """Train to the end, or to the time limit; then finish. Returns the run's folder."""
        self.folder = folder
        folder.title = figures.run_title(self.config.method, short_name(self.config.data))
        folder.units = self.training.inference.units
        distributed.broadcast(str(folder.path))
        if self.options.tensorboard:
            self.board = TensorBoardLogger(folder.path, self.history[-1]["step"] if self.history else 0)
        self._announce()
        with StopSignals() as signals:
            for step in self.training.steps():
                self._after_step(step)
                code = distributed.all_reduce_max(signals.code or (OUT_OF_TIME if self._out_of_time() else 0))
                if code > OUT_OF_TIME:
                    self._stop(code)
                if code == OUT_OF_TIME:
                    self._end_early(step)
                    break
        self._finish()
        return folder.path

    def _announce(self) -> None:
        training, count = self.training, distributed.world_size()
        self.listen(
            Started(
                folder=self.folder.path,
                method=self.config.method,
                parameters=sum(p.numel() for p in training.method.parameters() if p.requires_grad),
                data=training.split.name,
                images=len(training.split),
                epochs=self.config.epochs,
                total_steps=training.total_steps,
                step=training.step,
                device=describe(training.device) + (f", {count} processes" if count > 1 else ""),
                precision=training.precision,
            )
        )
        for remark in training.method.remarks():
            self.listen(Note(remark))

    def _after_step(self, step: Step) -> None:
        self.sums.add(step.losses, step.images, self.training.guard.bad == 0)
        self.clock.count(step.images)
        if self.clock.steps == WARM_STEPS:
            step.losses["loss"].item()  # waits for the device, which may have compiled
            self.clock.open_window()
        if self.clock.steps == STEPS_BEFORE_ESTIMATE:
            left = self._progress(step).seconds_left
            self.listen(Note(f"expected time: {format_seconds(self.elapsed + self.clock.total() + left)}"))
        if self.clock.since_read() >= READ_EVERY and self.clock.steps > WARM_STEPS:
            self._check_finite()
            self.listen(self._progress(step))
            self.clock.mark_read()
        if step.step % self.training.steps_per_epoch == 0:
            self._end_epoch(step.epoch, whole=True)
        if self.clock.since_save() >= self.options.save_every:
            self._save()

    def _progress(self, step: Step) -> TrainingProgress:
        losses = {name: float(value) for name, value in step.losses.items()}  # waits for the device
        images = (self.training.total_steps - step.step) * self.training.batch_size
        rate = self.clock.images_per_second()
        limit = self.options.max_minutes
        most = math.inf if limit is None else max(0.0, 60 * limit - self.clock.total())
        return TrainingProgress(
            epoch=step.epoch,
            epochs=self.config.epochs,
            step=step.step,
            total_steps=self.training.total_steps,
            images_per_second=rate,
            losses=losses,
            seconds_left=min(images / rate, most),
            memory_bytes=peak_memory(self.training.device),
        )

    def _end_epoch(self, epoch: int, *, whole: bool) -> None:
        """Write the epoch's line of the history, and look at the method when that is due."""
        self._check_finite()
        trained = epochs_of(self.training.step, self.training.steps_per_epoch)
        record: dict[str, Any] = {"epoch": trained, "step": self.training.step}
        record |= self.sums.means()
        record["images_per_second"] = round(self.clock.images_per_second(), 1)
        record |= self._observe(epoch, last=not whole)
        due = self.watch.pictures_due(epoch, last=not whole)
        previews = self.watch.draw(self.training.inference) if due else {}
        self.folder.write_previews(previews, trained)
        record["learning_rate"] = self.training.optimizer.param_groups[0]["lr"]
        record["seconds"] = round(self.elapsed + self.clock.total(), 3)
        record = {name: value if math.isfinite(value) else None for name, value in record.items()}
        if record.get("collapsed") and not (self.history and self.history[-1].get("collapsed")):
            spread, rank = record["output_std"], record["rankme"]
            self.listen(
                Note(f"the output has collapsed (std {spread:.2g}, rank {rank:.2g}); training goes on")
            )
        self.history.append(record)
        self.folder.write_history(self.history)
        if self.board is not None:
            self.board.epoch(record, previews)
        if due and self.clock.since_drawn() >= DRAW_EVERY:
            self.folder.write_curves(self.history)
            self.clock.mark_drawn()
        self.sums.reset()
        self.listen(EpochEnded(record))
        self.clock.open_window()

    def _observe(self, epoch: int, *, last: bool) -> dict[str, Any]:
        return self.watch.observe(self.training.inference, epoch, steps=self.training.step, last=last)

    def _check_finite(self) -> None:
        if (first := self.training.guard.first_bad_step()) is None:
            return
        self.sums.images -= (self.training.step - first) * self.training.batch_size
        self.training.rewind(first)
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
        self.clock.mark_saved()

    def _write(self) -> None:
        tensors, texts = self.training.state()
        sums, counts = self.sums.state()
        texts |= counts | {"elapsed": str(self.elapsed + self.clock.total())}
        self.folder.write_state(tensors | sums, {**texts, "data_digest": self.training.split.digest})
        self._write_model(finished=False)

    def _write_model(self, *, finished: bool) -> None:
        last = self.history[-1] if self.history else {}
        metrics = {**last, **self.about_data, **self.references}
        epoch = self.training.step // self.training.steps_per_epoch
        self.folder.write_model(self.training.inference, epoch, finished, metrics)

    def _stop(self, code: int) -> None:
        self._save()
        again = continuing(self.folder.path, self.options)
        raise UserError(f"stopped and saved at step {self.training.step}; {again}", code)

    def _out_of_time(self) -> bool:
        limit = self.options.max_minutes
        out = limit is not None and self.clock.total() >= 60 * limit
        return out and self.training.step < self.training.total_steps

    def _end_early(self, step: Step) -> None:
        trained = epochs_of(step.step, self.training.steps_per_epoch)
        again = continuing(self.folder.path, self.options)
        self.listen(Note(f"time is up after {progress_of(trained, self.config.epochs)} epochs; {again}"))
        self._save()
        if self.sums.images > 0:
            self._end_epoch(step.epoch, whole=False)
        elif self.config.sample_every > 0:  # time ended with the epoch, whose pictures were not due
            self.folder.write_previews(self.watch.draw(self.training.inference), step.epoch)

    def _finish(self) -> None:
        if self.training.step >= self.training.total_steps:
            self._save()
        method = self.training.inference.eval()
        method.after_training(self.training.split.images)
        known = self.history[-1].get("knn_accuracy") if self.history else None
        self.references = self.watch.references(method, known)
        if verdict := judged(self.references):
            self.listen(Note(verdict))
        if self.board is not None:
            self.board.close()
        self.folder.write_contact_sheets()
        self.folder.write_curves(self.history)
        self._write_model(finished=True)


def start(config: Config, options: Options, listen: Listener = silent) -> Path:
    """Train a new run to its end; returns its folder.

    Where torchrun started several processes, every one of them calls this; the first one writes.

    Raises:
        UserError: the data or device is not to be had, the run was stopped, or a loss was not finite.
    """
    device = choose_device(options.device)
    # In functions of their own, so that the method in training is gone when the processes part
    with distributed.process_group(device):
        return _start(config, options, device, listen)


def _start(config: Config, options: Options, device: torch.device, listen: Listener) -> Path:
    if begun := _begun(config, options):
        return resume(begun, config.model_dump(), options, listen)
    run = _prepared(config, options, device, listen)
    if not distributed.is_main_process():
        return follow(run.training, run.watch)
    _mention_unfinished(config, options, listen)
    folder = RunFolder(runs.new_folder(config, options.tag, options.out, arm=options.arm))
    try:
        folder.write_start(config, run.training.device)
        return run.go(folder)
    finally:
        folder.release()


def _mention_unfinished(config: Config, options: Options, listen: Listener) -> None:
    """Say that the newest run of these settings is not at its end, since a new one is about to begin."""
    if options.out is not None:
        return
    begun = runs.begun(config, options.tag, arm=options.arm)
    if begun is not None and not is_complete(begun, config.epochs):
        ways = f"`genssl train --resume {begun}`, or this command with --go-on, continues it"
        listen(Note(f"{begun} is an unfinished run of these settings; {ways}. Starting a new run"))


def _begun(config: Config, options: Options) -> Path | None:
    """The run to continue (`go_on`, or a restart), the same in every process; None: start a new one."""
    path = None
    if distributed.is_main_process() and (options.go_on or restart_count() > 0):
        path = runs.begun(config, options.tag, options.out, arm=options.arm)
    text = distributed.broadcast(str(path or ""))
    return Path(text) if text else None


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
    device = choose_device(options.device)
    with distributed.process_group(device):
        return _resume(path, changes, options, device, listen)


def _resume(
    path: Path, changes: Mapping[str, Any], options: Options, device: torch.device, listen: Listener
) -> Path:
    folder = RunFolder(path, held=distributed.is_main_process())
    try:
        config = folder.read_config()
        refuse_changes(config, changes)
        if is_complete(path, config.epochs):
            listen(Note(f"{path} is complete: all {config.epochs} epochs are done, nothing is left to do"))
            return path
        run = _prepared(config, options, device, listen)
        if not distributed.is_main_process():
            distributed.broadcast("")  # a state that cannot be read is said once, by the first process
        run.restore(folder)
        if not distributed.is_main_process():
            return follow(run.training, run.watch)
        distributed.broadcast("")
        return run.go(folder)
    finally:
        folder.release()


def _prepared(config: Config, options: Options, device: torch.device, listen: Listener) -> RunInProgress:
    if options.tensorboard:
        loggers.require_tensorboard()
    train, test = load_splits(config, listen)
    return RunInProgress(config, options, listen, make_loader(train, device, options.resident_limit), test)


def load_splits(config: Config, listen: Listener) -> tuple[Split, Split]:
    """The config's train split, limited, and its test split, both on the host."""

    def load_part(part: Literal["train", "test"]) -> Split:
        return load(
            config.data,
            part,
            image_size=config.image_size,
            seed=config.seed,
            skip_bad=config.skip_bad,
            progress=lambda text, done, total: listen(Loading(text, done, total)),
        )

    train = limit_split(load_part("train"), config.limit, config.seed)
    if len(train) < 2:
        raise UserError(
            f"{config.data} leaves {len(train)} image to train on, and batch norm needs 2 or more"
        )
    return train, load_part("test")


def require_data(configs: Iterable[Config], listen: Listener) -> None:
    """Load the data of several runs, each data set once, so that an error comes before the first run starts.

    Raises:
        UserError: as in `load`.
    """
    checked = set()
    for config in configs:
        source = (config.data, config.image_size, config.skip_bad)
        if source not in checked:
            load_splits(config, listen)
            checked.add(source)
