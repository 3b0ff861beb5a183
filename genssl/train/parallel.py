"""One method in several processes: batch norms that see the global batch, gradients that are averaged."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from genssl import processes
from genssl.errors import UserError
from genssl.models.method import Method


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes, on any device: torch's SyncBatchNorm refuses the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), normalised over all but the channels, and over the processes."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        n = processes.count() * x.numel() / x.shape[1]  # every process has as many images
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mean = processes.total(wide.sum(axes)) / n  # (C,)
            centred = wide - mean.view(shape)
            variance = processes.total(centred.square().sum(axes)) / n
            self._remember(mean, variance * n / (n - 1))
            found = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                found = found * self.weight.view(shape) + self.bias.view(shape)
        return found.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def synchronised(method: Method, device: torch.device) -> Method:
    """The method with batch norms over all processes' images; untouched where there is one process."""
    if processes.count() == 1:
        return method
    if device.type == "cuda":
        converted: Method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return converted
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, _global(child))
    return method


def _global(norm: _BatchNorm) -> GlobalBatchNorm:
    """The same norm, weights and statistics, over all processes."""
    found = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    found.__dict__.update(norm.__dict__)  # parameters and buffers are shared, so that optimisers keep theirs
    return found


def averaging(objective: nn.Module) -> nn.Module:
    """The objective with gradients averaged over the processes; untouched where there is one."""
    if processes.count() == 1:
        return objective
    # Buffers are the same everywhere without being sent: every statistic is over the global batch
    return DistributedDataParallel(objective, broadcast_buffers=False)


def check_shares(batch_size: int) -> None:
    """Refuse a global batch that has no equal shares: means of unequal ones are not the batch's mean.

    Raises:
        UserError: with the nearest sizes that have.
    """
    each, rest = divmod(batch_size, processes.count())
    if rest:
        sizes = [size * processes.count() for size in (each, each + 1) if size > 0]
        raise UserError(
            f"a batch of {batch_size} images has no equal shares for {processes.count()} processes; "
            f"use --batch-size {' or '.join(map(str, sizes))}"
        )
