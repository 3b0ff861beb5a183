"""VICReg as a method: its terms of its outputs, a gradient through both views, and its settings."""

from typing import Any

import pytest
import torch

from genssl.config import VICRegConfig
from genssl.models.build import build
from genssl.models.losses import vicreg_loss
from genssl.models.vicreg import VICReg

from .siamese_data import gradient_names, linear, tiny, views


def settings(**changes: Any) -> VICRegConfig:
    small = {"encoder": "small", "projector_dim": 8, "projector_hidden": 12}
    return VICRegConfig(**{**small, **changes})


def test_the_loss_is_that_of_the_outputs_with_the_methods_weights() -> None:
    method = tiny(VICReg, invariance=2.0, variance=3.0, covariance=5.0).eval()
    x1, x2 = views()
    found = method.loss((x1, x2), {})
    torch.testing.assert_close(found, vicreg_loss(method.outputs(x1), method.outputs(x2), 2.0, 3.0, 5.0))
    assert list(found) == ["loss", "invariance", "variance", "covariance"]
    weighted = 2 * found["invariance"] + 3 * found["variance"] + 5 * found["covariance"]
    torch.testing.assert_close(found["loss"], weighted)


@pytest.mark.parametrize("term", ["invariance", "variance", "covariance"])
def test_each_weight_is_of_its_own_term(term: str) -> None:
    weights = {"invariance": 0.0, "variance": 0.0, "covariance": 0.0, term: 1.0}
    config = settings(**weights)
    found = build(config).loss(views(), {})
    assert found["loss"].item() == pytest.approx(found[term].item())
    assert found[term].item() > 0


def test_gradients_go_through_both_views() -> None:
    method = linear(VICReg)
    x1, x2 = (x.requires_grad_() for x in views())
    method.loss((x1, x2), {})["loss"].backward()
    assert x1.grad is not None
    assert x2.grad is not None
    assert x1.grad.any()
    assert x2.grad.any()


def test_every_parameter_learns_and_the_optimizer_has_it_once() -> None:
    method = tiny(VICReg)
    method.loss(views(), {})["loss"].backward()
    # an offset common to all outputs changes neither distances nor deviations
    assert gradient_names(method) | {"projector.3.bias"} == {name for name, _ in method.named_parameters()}
    (group,) = method.parameter_groups()
    assert [id(p) for p in group["params"]] == [id(p) for p in method.parameters()]


def test_the_projector_is_the_papers() -> None:
    with torch.device("meta"):
        method = build(VICRegConfig())
    assert isinstance(method, VICReg)
    assert isinstance(method.projector, torch.nn.Sequential)
    sizes = [tuple(p.shape) for p in method.projector.parameters() if p.ndim == 2]
    assert sizes == [(2048, 512), (2048, 2048), (2048, 2048)]
    assert isinstance(method.projector[-1], torch.nn.Linear)
