"""The only training loop. It knows no method and no data set, and it never prints, draws or saves."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genssl import distributed
from genssl.data.augment.views import Views
from genssl.data.loader import Loader
from genssl.data.split import Split
from genssl.errors import UserError, parse_json
from genssl.models.method import Method
from genssl.runtime import autocast, choose_precision, epoch_permutation, generator
from genssl.settings import Config
from genssl.training.ddp import check_batch_divides, convert_batch_norm, wrap_ddp
from genssl.training.optim import EMA, Guard, build_optimizer, optimizer_step, set_lr
from genssl.training.splits import missing_labels_message

# Prefixes of the names of tensors in a saved state; part of the file format
METHOD, AVERAGE, OPTIMIZER, LOSSES = "method.", "average.", "optimizer.", "sum."
MOST_IMAGES = 10**15  # of an epoch, in a saved state


@dataclass(frozen=True)
class Step:
    """What one training step yields.

    Attributes:
        epoch: one-based.
        step: number of steps that the run has taken, with this one.
        losses: the method's named terms, scalars still on the device; means over all processes.
        images: number of images in the step, in all processes together.
        seconds: wall clock since the loop was entered.
    """

    epoch: int
    step: int
    losses: dict[str, Tensor]
    images: int
    seconds: float


class Objective(nn.Module):
    """Views and loss in one forward: the one thing that is compiled, and wrapped by DDP."""

    def __init__(self, method: Method, views: Views) -> None:
        super().__init__()
        self.method = method
        self.views = views

    def forward(
        self, images: Tensor, view_draws: dict[str, Tensor], method_draws: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """uint8 images (B, C, H, W) and all random draws -> named scalar losses."""
        views = self.views(images, view_draws)
        # Convolutions are fastest on channels_last, on GPUs and on CPUs
        views = tuple(view.contiguous(memory_format=torch.channels_last) for view in views)
        return self.method.loss(views, method_draws)


class Training:
    """A method in training: its optimizer, guard and EMA, and the number of steps taken.

    Batch size, order and draws are those of the global batch; each of several processes takes its rows of
    them, so that their number changes the rounding of sums and nothing else.

    Args:
        method: on the device.
        views: turns images into the method's views.
        data: the train split on the device, or a loader that may stream it there.
        config: the run's settings.

    Raises:
        UserError: the batch has no equal shares for the processes.
    """

    def __init__(self, method: Method, views: Views, data: Split | Loader, config: Config) -> None:
        self.data = data if isinstance(data, Loader) else Loader(data, data.images.device)
        self.split, self.device, self.config = self.data.split, self.data.device, config
        self.method = method = convert_batch_norm(method, self.device)
        self.precision = choose_precision(config.precision, self.device)
        self.batch_size = min(config.batch_size, len(self.split))
        check_batch_divides(self.batch_size)
        # Only whole batches: the images that are left over wait for the next epoch's order
        self.steps_per_epoch = len(self.split) // self.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.optimizer = build_optimizer(method.parameter_groups(), config, self.batch_size)
        self.guard = Guard(method, self.device)
        self.ema = None if config.ema_decay is None else EMA(method, config.ema_decay, self.guard)
        self.step = 0
        self.views = views
        self.objective = wrap_ddp(Objective(method, views))
        self.labels = labels_for(method, self.split)

    def compile(self) -> None:
        """Compile views, network and losses into one graph, at the first step."""
        self.objective.compile()

    @property
    def inference(self) -> Method:
        """The method to evaluate and to save: the EMA where there is one."""
        return self.method if self.ema is None else self.ema.averaged.module  # type: ignore[return-value]

    def steps(self) -> Iterator[Step]:
        """Train from the present step to the end, yielding after each step."""
        start = time.perf_counter()
        while self.step < self.total_steps:
            # A resumed run begins inside an epoch, at the batch that it had come to
            epoch, batch = divmod(self.step, self.steps_per_epoch)
            for images, labels in self._batches(epoch, batch):
                losses = self._take_step(images, labels)
                yield Step(epoch + 1, self.step, losses, self.batch_size, time.perf_counter() - start)

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """This process's batches of zero-based `epoch`, from number `first` on.

        Images, uint8 (B, C, H, W), and their labels, (B,) int64, for a method that asks for them.
        """
        # A function of (seed, epoch) alone, so that a resumed run goes on in the same order
        order = epoch_permutation(self.config.seed, epoch, len(self.split))
        batches = order[: self.steps_per_epoch * self.batch_size].view(-1, self.batch_size)
        rows = batches[first:, distributed.shard(self.batch_size)]
        images = self.data.batches(rows)
        if self.labels is None:
            return zip(images, itertools.repeat(None))
        # All of the epoch's labels at once: 8 bytes per image
        return zip(images, self.labels[rows.to(self.labels.device)].to(self.device), strict=True)

    def _take_step(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        # Batch norms use the batch's statistics; pictures between epochs have left the method in eval mode
        self.method.train()
        set_lr(self.optimizer, self.config, self.step, self.steps_per_epoch)
        # The forward pass moves running statistics: keep them, in case the loss is not finite
        self.guard.remember()
        losses = self._forward(images, labels)
        # None instead of zeros: the backward pass then writes gradients and need not add to them
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages the gradients over the processes meanwhile
        losses["loss"].backward()
        # Means over the processes, still on the device: every process sees the same loss, and decides alike
        means = distributed.all_reduce_mean(losses)
        self._update(means["loss"])
        return means

    def _forward(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        # All randomness is drawn for the global batch, so that the number of processes changes none, and
        # outside the graph: a generator inside a full graph does not compile
        rows = distributed.shard(self.batch_size)
        draws = (
            self.views.draws(self.batch_size, self._stream("views")),
            self.method.draws(self.batch_size, self._stream("method")),
        )
        view_draws, method_draws = ({name: value[rows] for name, value in drawn.items()} for drawn in draws)
        if labels is not None:
            method_draws["labels"] = labels
        # bf16 where the hardware multiplies it; losses and statistics leave autocast themselves
        with autocast(self.device, self.precision):
            losses: dict[str, Tensor] = self.objective(images, view_draws, method_draws)
        return losses

    def _update(self, loss: Tensor) -> None:
        groups = [group for group in self.optimizer.param_groups if not group.get("is_probe")]
        parameters = [p for group in groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # The flag for a non-finite step stays on the device: asking for it here would wait for the device
        self.guard.check(loss, norm, self.step)
        if self.config.gradient_clip is not None:
            # g <- g * min(1, clip / |g|), where |g| is the norm of all gradients together
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)
        optimizer_step(self.optimizer, self.guard)
        # For instance a target network, whose momentum depends on the progress, in (0, 1]
        self.method.after_step((self.step + 1) / self.total_steps)
        # After all that writes: a bad step has changed nothing
        self.guard.restore()
        if self.ema is not None:
            self.ema.update(self.method)
        self.step += 1

    def _stream(self, name: str) -> torch.Generator:
        # Seeded by (seed, name, step): resuming needs no saved generator state
        return generator(self.config.seed, name, self.step, device=self.device)

    def rewind(self, step: int) -> None:
        """Count as if the steps from zero-based `step` on had not been taken; the guard let none through."""
        self.step = step
        if self.ema is not None:
            self.ema.averaged.n_averaged.fill_(step)

    def is_finite(self) -> bool:
        """Whether every weight and statistic is finite; reads from the device."""
        values = [value for value in self.method.state_dict().values() if value.is_floating_point()]
        return bool(torch.stack([value.isfinite().all() for value in values]).all())

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything that resuming needs: (tensors, texts)."""
        tensors = _with_prefix(METHOD, self.method.state_dict())
        if self.ema is not None:
            tensors |= _with_prefix(AVERAGE, self.ema.averaged.state_dict())
        saved = self.optimizer.state_dict()
        for i, entries in saved["state"].items():
            moments = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
            tensors |= _with_prefix(f"{OPTIMIZER}{i}.", moments)
        return tensors, {"step": str(self.step), "groups": json.dumps(saved["param_groups"])}

    def restore(self, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
        """Continue from a `state`: the next step is the one that would have followed it.

        Raises:
            ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError: it is no such state.
        """
        step = int(texts["step"])
        if not 0 <= step <= self.total_steps:
            raise ValueError(f"step {texts['step']:.20} of {self.total_steps}")
        if odd := [name for name, value in tensors.items() if not _is_finite(value)]:
            raise ValueError(f"{odd[0]} is not finite")
        self.method.load_state_dict(_without_prefix(METHOD, tensors))
        if self.ema is not None:
            self.ema.averaged.load_state_dict(_without_prefix(AVERAGE, tensors))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        entries: dict[int, dict[str, Any]] = {}
        for name, value in _without_prefix(OPTIMIZER, tensors).items():
            i, key = name.split(".", 1)
            if value.ndim > 0 and value.shape != parameters[int(i)].shape:
                raise ValueError(f"{name} is of another shape than its weight")
            entries.setdefault(int(i), {})[key] = _with_strides_of(parameters[int(i)], value)
        if len({frozenset(moments) for moments in entries.values()}) > 1:
            raise ValueError("some weights lack a moment")
        groups = parse_json(texts["groups"])
        for group in groups:
            # The key's name in states of earlier versions
            if "constant_rate" in group:
                group["fix_lr"] = group.pop("constant_rate")
        for group, current in zip(groups, self.optimizer.state_dict()["param_groups"], strict=True):
            odd = [name for name, value in current.items() if not _is_like(group.get(name, value), value)]
            if odd:
                raise ValueError(f"no usable {odd[0]} of the optimizer")
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.step = step


def labels_for(method: Method, split: Split) -> Tensor | None:
    """The labels (N,) of a split for a method that is trained on labels; None for another.

    Raises:
        UserError: there are none, or of another number of classes.
    """
    if not method.classes:
        return None
    if split.labels is None:
        raise UserError(missing_labels_message(split.name, method.config))
    if len(split.classes) != method.classes:
        raise UserError(f"{split.name} has {len(split.classes)} classes, and the network {method.classes}")
    return split.labels


class LossMeter:
    """The losses of an epoch's steps so far, weighted by their images. Nothing is read before `means`."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.images = 0

    def add(self, losses: Mapping[str, Tensor], images: int, is_finite: Tensor) -> None:
        """Add a step. One that is not finite adds nothing to the losses."""
        for name, value in losses.items():
            term = torch.where(is_finite, value * images, 0.0)
            self.totals[name] = self.totals[name] + term if name in self.totals else term
        self.images += images

    def means(self) -> dict[str, float]:
        """Means over the images; reads from the device."""
        return {name: float(total) / self.images for name, total in self.totals.items()}

    def reset(self) -> None:
        """Begin an epoch."""
        self.totals, self.images = {}, 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What resuming in the middle of an epoch needs: (tensors, texts)."""
        return _with_prefix(LOSSES, self.totals), {"images": str(self.images)}

    def restore(self, tensors: Mapping[str, Tensor], texts: Mapping[str, str], device: torch.device) -> None:
        """Continue from a `state`."""
        self.images = int(texts["images"])
        if not 0 <= self.images < MOST_IMAGES:
            raise ValueError(f"{texts['images']:.20} images")
        self.totals = {name: total.to(device) for name, total in _without_prefix(LOSSES, tensors).items()}


def _is_like(value: object, current: object) -> bool:
    """Whether a setting of the optimizer is of the kind that it has now; JSON turns tuples into lists."""
    if isinstance(current, tuple):
        return isinstance(value, list | tuple) and len(value) == len(current)
    return isinstance(value, int | float) if isinstance(current, float) else type(value) is type(current)


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _with_strides_of(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of a saved tensor with the parameter's strides, which fused optimizers take for granted."""
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
