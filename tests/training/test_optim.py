"""LARS against the paper's equations in float64, against lightly's, and its invariances."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from genssl.runtime import generator
from genssl.training.optim import LARS

from ..peers import import_peer

Array = NDArray[np.float64]
SHAPES = {"matrix": (4, 3), "convolution": (2, 3, 2, 2), "zero": (2, 2), "bias": (4,), "scalar": ()}


def normal(shape: tuple[int, ...], counter: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "test", counter))


def weights() -> dict[str, Tensor]:
    found = {name: normal(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}
    found["zero"].zero_()
    return {name: value.requires_grad_() for name, value in found.items()}


def gradient(name: str, step: int) -> Tensor:
    return normal(SHAPES[name], 100 * (step + 1) + len(name))


def stepped(w: dict[str, Tensor], steps: int = 4, scale: float = 1.0, **options: Any) -> dict[str, Tensor]:
    """The weights after some steps with given gradients, the rate halved at each step."""
    optimizer = LARS([{"params": list(w.values())}], **{"lr": 0.4, **options})
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.4 / 2**step
        for name, p in w.items():
            p.grad = scale * gradient(name, step)
        optimizer.step()
    return w


def length(a: Array) -> float:
    return math.sqrt(sum(float(x) ** 2 for x in a.flat))


def by_hand(w: Array, name: str, momentum: float, decay: float, trust: float, clip: bool) -> Array:
    """You et al. 2017, equation 6, with the momentum of torch's SGD."""
    v = np.zeros_like(w)
    for step in range(4):
        lr, g = 0.4 / 2**step, gradient(name, step).double().numpy()
        if w.ndim > 1:
            local = 1.0
            if length(w) > 0 and length(g) > 0:
                local = trust * length(w) / (length(g) + decay * length(w))
                local = min(local / lr, 1.0) if clip else local
            g = local * (g + decay * w)
        v = momentum * v + g
        w = w - lr * v
    return w


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("trust", "clip"), [(0.01, False), (0.3, True), (0.9, True)])
def test_steps_are_the_papers(decay: float, trust: float, clip: bool) -> None:
    options: dict[str, Any] = {"momentum": 0.8, "weight_decay": decay, "trust": trust, "clip": clip}
    found = stepped(weights(), **options)
    for name, start in weights().items():
        expected = by_hand(start.detach().double().numpy(), name, 0.8, decay, trust, clip)
        np.testing.assert_allclose(found[name].detach().numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_biases_and_norms_are_those_of_sgd_without_decay() -> None:
    found, w = stepped(weights(), weight_decay=0.5), weights()
    sgd = torch.optim.SGD([w["bias"], w["scalar"]], lr=0.4, momentum=0.9)
    for step in range(4):
        sgd.param_groups[0]["lr"] = 0.4 / 2**step
        for name in ("bias", "scalar"):
            w[name].grad = gradient(name, step)
        sgd.step()
    for name in ("bias", "scalar"):
        torch.testing.assert_close(found[name], w[name])


def test_a_layer_does_not_see_the_scale_of_its_gradients() -> None:
    first, second = stepped(weights()), stepped(weights(), scale=1000.0)
    for name in ("matrix", "convolution"):
        torch.testing.assert_close(first[name], second[name])
    assert not torch.allclose(first["bias"], second["bias"])


def test_agrees_with_lightly() -> None:
    peer = import_peer("lightly.utils.lars").LARS
    ours, theirs = ({k: v for k, v in weights().items() if v.ndim > 1} for _ in range(2))
    stepped(ours, weight_decay=0.1, trust=0.02)
    optimizer = peer(list(theirs.values()), lr=0.4, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.4 / 2**step
        for name, p in theirs.items():
            p.grad = gradient(name, step)
        optimizer.step()
    for name in ("matrix", "convolution"):
        torch.testing.assert_close(ours[name], theirs[name])
