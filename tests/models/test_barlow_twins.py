"""Barlow Twins as a method: its loss of its outputs, a gradient through both views, and its settings."""

from typing import Any

import torch

from genssl.config import BarlowTwinsConfig
from genssl.models.barlow_twins import BarlowTwins
from genssl.models.build import build
from genssl.models.losses import barlow_twins_loss

from .siamese_data import gradient_names, linear, tiny, views


def settings(**changes: Any) -> BarlowTwinsConfig:
    small = {"encoder": "small", "projector_dim": 8, "projector_hidden": 12}
    return BarlowTwinsConfig(**{**small, **changes})


def test_the_loss_is_that_of_the_outputs_with_the_methods_weight() -> None:
    method = tiny(BarlowTwins, lambd=0.3).eval()
    x1, x2 = views()
    expected = barlow_twins_loss(method.outputs(x1), method.outputs(x2), 0.3)
    torch.testing.assert_close(method.loss((x1, x2), {}), {"loss": expected})


def test_gradients_go_through_both_views() -> None:
    method = linear(BarlowTwins)
    x1, x2 = (x.requires_grad_() for x in views())
    method.loss((x1, x2), {})["loss"].backward()
    assert x1.grad is not None
    assert x2.grad is not None
    assert x1.grad.any()
    assert x2.grad.any()


def test_features_and_outputs() -> None:
    method = tiny(BarlowTwins).eval()
    x, _ = views()
    assert torch.equal(method.features(x), method.encoder(x))
    assert torch.equal(method.outputs(x), method.projector(method.encoder(x)))


def test_every_parameter_learns_and_the_optimizer_has_it_once() -> None:
    method = tiny(BarlowTwins)
    method.loss(views(), {})["loss"].backward()
    # an offset common to all outputs changes no correlation
    assert gradient_names(method) | {"projector.3.bias"} == {name for name, _ in method.named_parameters()}
    (group,) = method.parameter_groups()
    assert [id(p) for p in group["params"]] == [id(p) for p in method.parameters()]


def test_every_setting_reaches_the_method() -> None:
    method = build(settings(lambd=0.25, projector_layers=3))
    assert isinstance(method, BarlowTwins)
    assert method.lambd == 0.25
    sizes = [tuple(p.shape) for p in method.projector.parameters() if p.ndim == 2]
    assert sizes == [(12, 128), (12, 12), (8, 12)]
    assert isinstance(method.projector, torch.nn.Sequential)
    assert isinstance(method.projector[-1], torch.nn.Linear)
