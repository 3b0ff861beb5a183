"""The only training loop. It knows no method and no data set, and it never prints, draws or saves."""

import contextlib
import json
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genssl import distributed
from genssl.config import Config
from genssl.data.augment.views import Views
from genssl.data.loader import Loader
from genssl.data.split import Split
from genssl.models.method import Method
from genssl.runtime import autocast, choose_precision, epoch_permutation, generator
from genssl.train.ddp import check_batch_divides, convert_batch_norm, wrap_ddp
from genssl.train.optim import EMA, Guard, build_optimizer, gradients_of, optimizer_step, set_lr

PREFIX = "sum."  # of their names in a saved state


class LossMeter:
    """The losses of an epoch's steps so far, weighted by their images. Nothing is read before `means`."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.images = 0

    def add(self, losses: Mapping[str, Tensor], images: int, fine: Tensor) -> None:
        """Add a step; one that the guard kept out, where `fine` is false, adds nothing to the losses."""
        for name, value in losses.items():
            share = torch.where(fine, value * images, 0.0)
            self.totals[name] = self.totals[name] + share if name in self.totals else share
        self.images += images

    def means(self) -> dict[str, float]:
        """Over the images; reads from the device."""
        return {name: float(total) / self.images for name, total in self.totals.items()}

    def reset(self) -> None:
        """Begin an epoch."""
        self.totals, self.images = {}, 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What resuming in the middle of an epoch needs: (tensors, texts)."""
        return {PREFIX + name: total for name, total in self.totals.items()}, {"images": str(self.images)}

    def restore(self, tensors: Mapping[str, Tensor], texts: Mapping[str, str], device: torch.device) -> None:
        """Continue from a `state`."""
        self.images = int(texts["images"])
        self.totals = {
            name.removeprefix(PREFIX): value.to(device)
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }


@dataclass(frozen=True)
class Step:
    """What one training step yields.

    Attributes:
        epoch: one-based.
        step: how many steps the run has taken, this one included.
        losses: the method's named terms, scalars still on the device; means over all processes.
        images: how many images the step saw, in all processes together.
        seconds: wall clock since the loop was entered.
    """

    epoch: int
    step: int
    losses: dict[str, Tensor]
    images: int
    seconds: float


class Objective(nn.Module):
    """Views and loss in one forward: the one thing that is compiled."""

    def __init__(self, method: Method, views: Views) -> None:
        super().__init__()
        self.method = method
        self.views = views

    def forward(
        self, images: Tensor, view_draws: dict[str, Tensor], method_draws: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """uint8 images (B, 3, H, W) and everything random -> named scalar losses."""
        views = self.views(images, view_draws)
        views = tuple(view.contiguous(memory_format=torch.channels_last) for view in views)
        return self.method.loss(views, method_draws)


class Training:
    """A method in training: its optimiser, its guard, its average and how far it has come.

    Batch size, order and draws are those of the global batch; each of several processes takes its rows of
    them, so that their number changes nothing.

    Args:
        method: on the device.
        views: what turns images into the method's views.
        data: the train split, on the device; or placed, where it may be streamed to the device.
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
        self.steps_per_epoch = len(self.split) // self.batch_size  # the rest waits for the next shuffle
        self.total_steps = config.epochs * self.steps_per_epoch
        self.optimizer = build_optimizer(method.parameter_groups(), config, self.batch_size)
        self.guard = Guard(method, self.device)
        self.average = None if config.ema_decay is None else EMA(method, config.ema_decay, self.guard)
        self.step = 0
        self.views = views
        self.objective = wrap_ddp(Objective(method, views))

    def compile(self) -> None:
        """Compile views, network and losses into one graph, at the first step."""
        self.objective.compile()

    @property
    def inference(self) -> Method:
        """The method to evaluate and to keep: the average where there is one."""
        return self.method if self.average is None else self.average.averaged.module  # type: ignore[return-value]

    def steps(self) -> Iterator[Step]:
        """Train from where the run stands to its end, yielding after each step."""
        start = time.perf_counter()
        while self.step < self.total_steps:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            with contextlib.closing(self._images(epoch, first)) as batches:
                for images in batches:
                    losses = self._take_step(images)
                    yield Step(epoch + 1, self.step, losses, self.batch_size, time.perf_counter() - start)

    def _images(self, epoch: int, first: int) -> Generator[Tensor]:
        """This process's images of zero-based `epoch`, from batch `first` on, a batch at a time."""
        # A function of (seed, epoch) alone: a resumed run goes on in the middle of the same order
        shuffled = epoch_permutation(self.config.seed, epoch, len(self.split))
        whole = shuffled[: self.steps_per_epoch * self.batch_size].view(-1, self.batch_size)
        return self.data.batches(whole[first:, distributed.shard(self.batch_size)])

    def _take_step(self, images: Tensor) -> dict[str, Tensor]:
        # The order of these lines is the training step: rate, forward, backward, guard, optimizer, EMA
        self.method.train()
        set_lr(self.optimizer, self.config, self.step, self.steps_per_epoch)
        self.guard.remember()
        losses = self._forward(images)
        # None instead of zeros: the backward pass then writes gradients and need not add to them
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        # Means over the processes, still on the device: every process sees the same loss, and decides alike
        reduced = distributed.all_reduce_mean(losses)
        self._update(reduced["loss"])
        return reduced

    def _forward(self, images: Tensor) -> dict[str, Tensor]:
        # All randomness is drawn for the global batch, so that the number of processes changes nothing, and
        # outside the graph: a generator inside a full graph does not compile
        rows = distributed.shard(self.batch_size)
        view_draws = self.views.draws(self.batch_size, self._stream("views"))
        method_draws = self.method.draws(self.batch_size, self._stream("method"))
        view_draws, method_draws = (
            {name: value[rows] for name, value in draws.items()} for draws in (view_draws, method_draws)
        )
        # bf16 where the hardware multiplies it; losses and statistics leave autocast themselves
        with autocast(self.device, self.precision):
            losses: dict[str, Tensor] = self.objective(images, view_draws, method_draws)
        return losses

    def _update(self, loss: Tensor) -> None:
        gradients = gradients_of(self.optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        # The flag for a non-finite step stays on the device: asking for it here would wait for the device
        self.guard.check(loss, norm, self.step)
        if self.config.gradient_clip is not None:
            # Clipping by the norm that is there already; torch's own function would compute it again
            torch._foreach_mul_(gradients, (self.config.gradient_clip / (norm + 1e-6)).clamp(max=1.0))
        optimizer_step(self.optimizer, self.guard)
        self.method.after_step((self.step + 1) / self.total_steps)
        self.guard.restore()
        if self.average is not None:
            self.average.update(self.method)
        self.step += 1

    def _stream(self, name: str) -> torch.Generator:
        return generator(self.config.seed, name, self.step, device=self.device)

    def rewind(self, step: int) -> None:
        """Count as if the steps from zero-based `step` on had not been taken; the guard let none through."""
        self.step = step
        if self.average is not None:
            self.average.averaged.n_averaged.fill_(step)

    def is_finite(self) -> bool:
        """Whether every weight and statistic is finite; reads from the device."""
        values = [value for value in self.method.state_dict().values() if value.is_floating_point()]
        return bool(torch.stack([value.isfinite().all() for value in values]).all())

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything that resuming needs: (tensors, texts)."""
        tensors = {f"method.{name}": value for name, value in self.method.state_dict().items()}
        if self.average is not None:
            averaged = self.average.averaged.state_dict()
            tensors |= {f"average.{name}": value for name, value in averaged.items()}
        saved = self.optimizer.state_dict()
        for index, entries in saved["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
        return tensors, {"step": str(self.step), "groups": json.dumps(saved["param_groups"])}

    def restore(self, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
        """Continue from a `state`: the next step is the one that would have followed it."""
        self.method.load_state_dict(_under("method.", tensors))
        if self.average is not None:
            self.average.averaged.load_state_dict(_under("average.", tensors))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        entries: dict[int, dict[str, Any]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, key = name.split(".", 1)
            entries.setdefault(int(index), {})[key] = _laid_out_like(parameters[int(index)], value)
        self.optimizer.load_state_dict({"state": entries, "param_groups": json.loads(texts["groups"])})
        self.step = int(texts["step"])


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of a saved tensor with the parameter's strides, which fused optimisers take for granted."""
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
