"""Optimizer, learning-rate schedule, and the guard that keeps a non-finite step out."""

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genssl.settings import Config

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


def build_optimizer(
    groups: list[dict[str, Any]], config: Config, batch_size: int | None = None
) -> torch.optim.Optimizer:
    """The config's optimizer over a method's parameter groups, for steps of `batch_size` images.

    torch's are fused, since only the fused kernels take a flag on the device to skip a step (`found_inf`),
    and since they are the fastest ones.
    """
    lr, decay = config.rate_for(batch_size or config.batch_size), config.weight_decay
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=lr, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, weight_decay=decay, fused=True)
        case "sgd":
            sgd = torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=config.momentum, fused=True)
            return _with_momenta(sgd) if config.momentum > 0 else sgd
        case "lars":
            trust: dict[str, Any] = {"trust": config.trust_coefficient, "clip": config.trust_clip}
            return LARS(groups, lr=lr, momentum=config.momentum, weight_decay=decay, **trust)


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate is adapted to each layer (You et al. 2017, equation 6).

    v <- momentum v + r (g + decay w) and w <- w - lr v, with r = trust |w| / (|g| + decay |w|): a step
    changes every layer by about the same share. As in torch's SGD, and unlike algorithm 1 of the paper, lr
    multiplies v where the weights change: under a schedule, earlier gradients take the present rate, too.

    r is 1 where w or g is all zero. Biases and the scales of norms, which have one axis, have r = 1 and no
    decay, as in the self-supervised methods that use LARS; so has a group with `is_probe`, whose weights
    start at zero.

    Args:
        groups: parameters, as for torch's optimizers.
        lr: learning rate.
        momentum: of v.
        weight_decay: decay.
        trust: the coefficient in r.
        clip: divide r by lr, and let it be 1 at most, so that no layer is faster than with SGD: lr is then a
            bound, and not a factor.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        clip: bool = False,
    ) -> None:
        named = {"momentum": momentum, "weight_decay": weight_decay, "trust": trust, "clip": clip}
        super().__init__(groups, {"lr": lr, **named})
        _with_momenta(self)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step, unless the scalar `found_inf` is set and above 0, as for torch's fused optimizers."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                bad = p.new_zeros(()) > 0 if found_inf is None else found_inf > 0
                v = self.state[p]["momentum_buffer"]
                moved = group["momentum"] * v + _adapted(p, p.grad, group)
                # Where, not a product: what is not finite times 0 is not finite
                v.copy_(torch.where(bad, v, moved))
                p.copy_(torch.where(bad, p, p - group["lr"] * v))


def _adapted(w: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor:
    """r (g + decay w), or g for parameters of one axis or none, and for a probe."""
    if w.ndim <= 1 or group.get("is_probe"):
        return g
    norm_w, norm_g = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
    r = group["trust"] * norm_w / (norm_g + group["weight_decay"] * norm_w)
    if group["clip"]:
        r = (r / group["lr"]).clamp(max=1)
    r = torch.where((norm_w > 0) & (norm_g > 0), r, 1.0)
    adapted: Tensor = r * (g + group["weight_decay"] * w)
    return adapted


def _with_momenta(optimizer: AnyOptimizer) -> AnyOptimizer:
    """Start from momenta of zero, with which the first step is the same.

    Otherwise the fused kernel allocates them in the first step and, where that step is skipped
    (`found_inf`), leaves them as whatever the memory held.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def lr_factor(config: Config, step: int, steps_per_epoch: int) -> float:
    """Factor of the learning rate at zero-based `step`: linear warm-up, then the schedule."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    # Half a cosine from 1 to 0 over the steps after the warm-up (Loshchilov and Hutter 2017)
    progress = (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, config: Config, step: int, steps_per_epoch: int) -> None:
    """Set every group's learning rate for zero-based `step`; that of a `fix_lr` group stays."""
    factor = lr_factor(config, step, steps_per_epoch)
    for group in optimizer.param_groups:
        base = group.setdefault("initial_lr", group["lr"])
        group["lr"] = base if group.get("fix_lr") else base * factor


def _memory(tensor: Tensor) -> Tensor:
    """A view of a tensor's numbers as they lie in memory, (numel,), in whatever layout; there are no gaps."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    assert reach == tensor.numel() or not tensor.numel()
    return tensor.detach().as_strided((tensor.numel(),), (1,))


class Guard:
    """Keeps a step whose loss or gradient is not finite from reaching anything, without a host read.

    The flag is a tensor on the device. Once raised it stays up: the fused optimizer skips every further
    update, and what the forward pass or `after_step` wrote (batch-norm statistics, an EMA target) is put
    back, so that the method is exactly as it was before the first bad step when the host reads the flag.
    """

    def __init__(self, method: nn.Module, device: torch.device) -> None:
        frozen = [p for p in method.parameters() if not p.requires_grad]
        # All tensors of a type in a row: a few launches a step, however many there are
        written = [_memory(tensor) for tensor in [*method.buffers(), *frozen]]
        types = sorted({tensor.dtype for tensor in written}, key=str)
        self.written = [[tensor for tensor in written if tensor.dtype == dtype] for dtype in types]
        self.copies = [torch.cat(tensors) for tensors in self.written]
        self.bad = torch.zeros((), device=device)
        self.first = torch.full((), -1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def remember(self) -> None:
        """Copy what a step may write besides the weights; before the forward pass."""
        for tensors, copy in zip(self.written, self.copies, strict=True):
            torch.cat(tensors, out=copy)

    @torch.no_grad()
    def check(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Raise the flag if the loss or the gradient's norm is not finite; after the backward pass."""
        is_finite = torch.isfinite(loss) & torch.isfinite(norm)
        bad = torch.maximum(self.bad, (~is_finite).to(self.bad.dtype))
        self.first.copy_(torch.where((bad > 0) & (self.first < 0), step, self.first))
        self.bad.copy_(bad)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was copied if the flag is up; after the step."""
        bad = self.bad > 0
        for tensors, copy in zip(self.written, self.copies, strict=True):
            kept = torch.where(bad, copy, torch.cat(tensors))
            torch._foreach_copy_(tensors, kept.split([len(tensor) for tensor in tensors]))

    def first_bad_step(self) -> int | None:
        """The first non-finite step, zero-based; reads from the device."""
        step = int(self.first.item())
        return None if step < 0 else step


def optimizer_step(optimizer: torch.optim.Optimizer, guard: Guard) -> None:
    """Take the optimizer's step unless the guard's flag is up."""
    if guard.bad.device.type == "mps" and guard.bad > 0:  # whose fused kernels ignore `found_inf`
        return
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = guard.bad  # type: ignore[attr-defined]
    optimizer.step()


class EMA(nn.Module):
    """Exponential moving average of a method's weights, by torch's AveragedModel.

    ema <- ema + (1 - d) (weights - ema), with the decay d = min(decay, (1 + k) / (10 + k)) after k updates:
    it warms up, so that the average of a short run does not hold the initial weights. A raised guard stops
    it.
    """

    def __init__(self, method: nn.Module, decay: float, guard: Guard) -> None:
        super().__init__()
        self.decay = decay
        self._guard = guard
        self.averaged = torch.optim.swa_utils.AveragedModel(
            method, multi_avg_fn=self._blend, use_buffers=True
        )

    def update(self, method: nn.Module) -> None:
        """Move the average towards the method's weights."""
        self.averaged.update_parameters(method)

    @torch.no_grad()
    def _blend(self, averages: Any, current: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, current)
            return
        warmup = torch.as_tensor((1 + count) / (10 + count), device=averages[0].device)
        weight = (1 - warmup.clamp(max=self.decay)) * (1 - self._guard.bad)
        differences = torch._foreach_sub(current, averages)
        torch._foreach_mul_(differences, weight)
        torch._foreach_add_(averages, differences)
