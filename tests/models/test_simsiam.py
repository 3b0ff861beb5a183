"""SimSiam: which way gradients go, what each view sees, and what the optimizer is given."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from genssl.config import SimSiamConfig
from genssl.models.build import build
from genssl.models.losses import simsiam_loss
from genssl.models.simsiam import SimSiam
from genssl.training.optim import build_optimizer, set_lr

from ..narrow import given
from .siamese_data import gradient_names, linear, tiny, views

Array = NDArray[np.float64]


def settings(**changes: Any) -> SimSiamConfig:
    small = {"encoder": "small", "projector_dim": 8, "projector_hidden": 12, "predictor_hidden": 6}
    return SimSiamConfig(**{**small, **changes})


def slopes(a: Array, b: Array) -> tuple[Array, Array]:
    """The derivatives of cos(a, b): (b' - cos a') / |a| and (a' - cos b') / |b|, primes for unit vectors."""
    lengths = math.sqrt(a @ a), math.sqrt(b @ b)
    units = a / lengths[0], b / lengths[1]
    cosine = units[0] @ units[1]
    return (units[1] - cosine * units[0]) / lengths[0], (units[0] - cosine * units[1]) / lengths[1]


def by_hand(
    x1: Array, x2: Array, w: Array, h: Array, *, stop_gradient: bool
) -> tuple[float, dict[str, Array]]:
    """Loss and gradients for z = W x, p = H z: the mean of -(cos(H z_1, z_2) + cos(H z_2, z_1)) / 2."""
    loss, dw, dh = 0.0, np.zeros_like(w), np.zeros_like(h)
    for here, there in [*zip(x1, x2, strict=True), *zip(x2, x1, strict=True)]:
        z, z_other = w @ here, w @ there
        p = h @ z
        dp, dz_other = slopes(p, z_other)
        share = -1 / (2 * len(x1))
        loss += share * float(p @ z_other) / math.sqrt((p @ p) * (z_other @ z_other))
        dh += share * np.outer(dp, z)
        dw += share * np.outer(h.T @ dp, here)
        if not stop_gradient:
            dw += share * np.outer(dz_other, there)
    return loss, {"w": dw, "h": dh}


@pytest.mark.parametrize("predictor", ["mlp", "identity"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_gradient_of_a_linear_model_is_the_one_worked_out_by_hand(
    predictor: str, stop_gradient: bool
) -> None:
    method = linear(SimSiam, predictor=predictor, stop_gradient=stop_gradient)
    x1, x2 = views()
    method.loss((x1, x2), {})["loss"].backward()
    flat = [x.flatten(1).double().numpy() for x in (x1, x2)]
    w = method.encoder.linear.weight
    h = method.predictor.weight if predictor == "mlp" else torch.eye(5)
    weights = [matrix.detach().double().numpy() for matrix in (w, h)]
    for stopped in (True, False):
        _, expected = by_hand(*flat, *weights, stop_gradient=stopped)
        error = np.abs(w.grad.double().numpy() - expected["w"]).max() / np.abs(expected["w"]).max()
        assert (error < 1e-5) == (stopped == stop_gradient), error
        if predictor == "mlp":  # the same with and without
            np.testing.assert_allclose(given(h.grad).double().numpy(), expected["h"], rtol=1e-3, atol=1e-6)
    expected_loss, _ = by_hand(*flat, *weights, stop_gradient=stop_gradient)
    assert method.loss((x1, x2), {})["loss"].item() == pytest.approx(expected_loss, abs=1e-6)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_forward_gives_outputs_and_predictions(stop_gradient: bool) -> None:
    method = tiny(SimSiam, stop_gradient=stop_gradient).eval()
    x1, x2 = views()
    z1, z2, p1, p2 = method(x1, x2)
    torch.testing.assert_close([z1, z2], [method.embed(x1), method.embed(x2)])
    torch.testing.assert_close([p1, p2], [method.predictor(z1), method.predictor(z2)])
    assert z1.shape == p2.shape == (6, 10)
    assert z1.requires_grad == z2.requires_grad == (not stop_gradient)
    assert p1.requires_grad
    assert p2.requires_grad
    torch.testing.assert_close(method.loss((x1, x2), {}), {"loss": simsiam_loss(p1=p1, p2=p2, z1=z1, z2=z2)})


def test_what_is_kept_is_the_encoder_and_what_collapses_is_the_projector() -> None:
    method = tiny(SimSiam).eval()
    x, _ = views()
    assert torch.equal(method.features(x), method.encoder(x))
    assert torch.equal(method.outputs(x), method.projector(method.encoder(x)))
    assert method.features(x).shape == (6, 16)
    assert method.outputs(x).shape == (6, 10)


def test_a_batch_norm_sees_one_view_at_a_time() -> None:
    x1, x2 = views()
    method = tiny(SimSiam).train()
    z1, _, p1, _ = method(x1, x2)
    other_z1, _, other_p1, _ = method(x1, 5 * x2 + 3)
    assert torch.equal(z1, other_z1)
    assert torch.equal(p1, other_p1)
    norm = method.projector[-1]
    assert int(norm.num_batches_tracked) == 4
    torch.testing.assert_close(z1.mean(0), torch.zeros(10), rtol=0, atol=1e-5)  # of its own view


def test_a_fixed_predictor_keeps_its_weights() -> None:
    method = build(settings(predictor="fixed"))
    before = {name: value.clone() for name, value in method.named_parameters()}
    optimizer = build_optimizer(method.parameter_groups(), settings())
    for step in range(2):
        method.loss(views(counter=step), {})["loss"].backward()
        optimizer.step()
    moved = {name for name, value in method.named_parameters() if not torch.equal(value, before[name])}
    fixed = {name for name in before if name.startswith("predictor.")}
    assert fixed
    assert moved == set(before) - fixed


def test_an_identity_predictor_is_none() -> None:
    method = tiny(SimSiam, predictor="identity")
    z1, z2, p1, p2 = method(*views())
    assert not list(method.predictor.parameters())
    assert torch.equal(z1, p1)
    assert torch.equal(z2, p2)
    assert p1.requires_grad
    assert not z1.requires_grad


@pytest.mark.parametrize("predictor", ["mlp", "identity", "fixed"])
@pytest.mark.parametrize("constant", [True, False])
def test_the_optimizer_gets_everything_that_learns_once(predictor: str, constant: bool) -> None:
    method = build(settings(predictor=predictor, fix_predictor_lr=constant))
    assert isinstance(method, SimSiam)
    groups = method.parameter_groups()
    given = [id(p) for group in groups for p in group["params"]]
    learning = [id(p) for p in method.parameters() if p.requires_grad]
    assert sorted(given) == sorted(learning)
    own = [group for group in groups if group.get("fix_lr")]
    assert len(own) == (constant and predictor == "mlp")
    for group in own:
        assert {id(p) for p in group["params"]} == {id(p) for p in method.predictor.parameters()}


@pytest.mark.parametrize("constant", [True, False])
def test_the_predictors_rate_stays_out_of_the_schedule(constant: bool) -> None:
    config = settings(epochs=5, batch_size=128, fix_predictor_lr=constant)
    method = build(config)
    assert isinstance(method, SimSiam)
    optimizer = build_optimizer(method.parameter_groups(), config)
    last = next(reversed(list(method.predictor.parameters())))
    seen = []
    for step in range(20):
        set_lr(optimizer, config, step, steps_per_epoch=4)
        rates = [g["lr"] for g in optimizer.param_groups if any(p is last for p in g["params"])]
        seen.append((optimizer.param_groups[0]["lr"], *rates))
    cosine = [0.015 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert [encoder for encoder, _ in seen] == pytest.approx(cosine)
    assert [predictor for _, predictor in seen] == pytest.approx([0.015] * 20 if constant else cosine)


def test_the_rate_grows_with_the_batch() -> None:
    rates = {size: settings().rate_for(size) for size in (64, 256, 512, 1024)}
    assert rates == pytest.approx({64: 0.0075, 256: 0.03, 512: 0.06, 1024: 0.12})
    assert settings(base_batch_size=None).rate_for(64) == 0.03
    optimizer = build_optimizer(build(settings(batch_size=64)).parameter_groups(), settings(batch_size=64))
    assert {group["lr"] for group in optimizer.param_groups} == {0.0075}


def test_every_setting_reaches_the_method() -> None:
    method = build(settings(stop_gradient=False, projector_layers=3, seed=3))
    assert isinstance(method, SimSiam)
    assert not method.stop_gradient
    sizes = [
        tuple(p.shape) for name, p in method.named_parameters() if name.startswith("proj") and p.ndim == 2
    ]
    assert sizes == [(12, 128), (12, 12), (8, 12)]
    hidden = [tuple(p.shape) for p in method.predictor.parameters() if p.ndim == 2]
    assert hidden == [(6, 8), (8, 6)]
    plain = build(settings())
    assert plain.stop_gradient
    identity = build(settings(predictor="identity"))
    assert isinstance(identity, SimSiam)
    assert not list(identity.predictor.parameters())


def test_arms_of_an_ablation_start_from_the_same_encoder() -> None:
    start = build(settings()).state_dict()
    for change in ({"predictor": "identity"}, {"projector_dim": 16}, {"stop_gradient": False}):
        other = build(settings(**change)).state_dict()
        assert all(torch.equal(other[name], start[name]) for name in start if name.startswith("encoder."))
    other = build(settings(seed=1)).state_dict()
    assert not torch.equal(other["encoder.conv1.weight"], start["encoder.conv1.weight"])


def test_every_parameter_learns() -> None:
    method = tiny(SimSiam)
    method.loss(views(), {})["loss"].backward()
    unused = {name for name, _ in method.named_parameters()} - gradient_names(method)
    assert not unused
