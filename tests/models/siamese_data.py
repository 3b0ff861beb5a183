"""What the tests of the self-supervised methods share: small views, and a model to work out by hand."""

from typing import Any

import torch
from torch import Tensor, nn

from genssl.models.method import Method
from genssl.models.resnet import Encoder
from genssl.models.siamese import Siamese
from genssl.runtime import generator

SIDE = 8


def views(count: int = 2, n: int = 6, counter: int = 0) -> tuple[Tensor, ...]:
    """Views (n, 3, 8, 8) of random images: the same images, each time with other noise."""
    source = generator(0, "test", counter)
    images = torch.randn(n, 3, SIDE, SIDE, generator=source)
    return tuple(images + 0.5 * torch.randn(images.shape, generator=source) for _ in range(count))


def tiny(kind: type[Siamese], **choices: Any) -> Any:
    """A method on a narrow encoder, its batch norms and zero weights moved as after some training."""
    torch.manual_seed(0)
    method = kind(Encoder(2), (12, 10), **choices)
    with torch.no_grad():
        for tensor in [*method.parameters(), *method.buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.3 * torch.rand(tensor.shape))
    return method


class Flat(nn.Module):
    """A linear encoder: (B, 3, 8, 8) -> (B, dim)."""

    def __init__(self, dim: int = 5) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(3 * SIDE * SIDE, dim, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.linear(images.flatten(1))
        return features


def linear(kind: type[Siamese], **choices: Any) -> Any:
    """A method that is linear throughout: z = W x, and p = H z (or p = z)."""
    torch.manual_seed(0)
    flat: Any = Flat()  # as an Encoder
    method = kind(flat, (5, 5), **choices)
    method.projector = nn.Identity()
    if isinstance(getattr(method, "predictor", None), nn.Sequential):
        method.predictor = nn.Linear(5, 5, bias=False)
    return method


def gradient_names(method: Method) -> set[str]:
    """The names of the parameters that a loss has reached."""
    return {name for name, p in method.named_parameters() if p.grad is not None and bool(p.grad.any())}
