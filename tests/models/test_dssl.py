"""DSSL: its loss from four views, which way gradients go, and its naive baseline."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.config import DSSLConfig
from genssl.models.build import build
from genssl.models.dssl import DSSL
from genssl.models.simsiam import SimSiam

from .siamese_data import gradient_names, linear, tiny, views


def settings(**changes: Any) -> DSSLConfig:
    small = {"encoder": "small", "projector_dim": 8, "projector_hidden": 12, "predictor_hidden": 6}
    return DSSLConfig(**{**small, **changes})


def distance(p: Tensor, z: Tensor, stop_gradient: bool) -> Tensor:
    """D(p, z), or D(p, stop_gradient(z)), in float64 and by torch's own cosine."""
    return -F.cosine_similarity(p, z.detach() if stop_gradient else z).mean()


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("naive", [True, False])
def test_loss_and_gradient_are_the_papers(beta: float, stop_gradient: bool, naive: bool) -> None:
    method = linear(DSSL, beta=beta, stop_gradient=stop_gradient, naive=naive)
    given = views(4)
    found = method.loss(given, {})
    found["loss"].backward()

    w = method.encoder.linear.weight.detach().double().requires_grad_()
    h = method.predictor.weight.detach().double().requires_grad_()
    z1, z2, heavy_z1, heavy_z2 = (x.flatten(1).double() @ w.T for x in given)
    p1, p2, heavy_p1, heavy_p2 = (z @ h.T for z in (z1, z2, heavy_z1, heavy_z2))

    def d(p: Tensor, z: Tensor) -> Tensor:
        return distance(p, z, stop_gradient)

    if naive:
        expected = d(heavy_p1, heavy_z2) / 2 + d(heavy_p2, heavy_z1) / 2
    else:
        expected = d(p1, z2) / 2 + d(p2, z1) / 2
        expected = expected + (1 - beta) / 2 * (d(heavy_p1, z1) + d(heavy_p2, z2))
        expected = expected + beta / 2 * (d(p1, heavy_z1) + d(p2, heavy_z2))
    expected.backward()
    assert found["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert w.grad is not None
    assert h.grad is not None
    for grad, reference in (
        (method.encoder.linear.weight.grad, w.grad),
        (method.predictor.weight.grad, h.grad),
    ):
        torch.testing.assert_close(grad.double(), reference, rtol=0, atol=1e-5 * float(reference.abs().max()))


def test_the_parts_are_logged_and_add_up() -> None:
    found = tiny(DSSL).loss(views(4), {})
    assert list(found) == ["loss", "symmetric", "directional"]
    torch.testing.assert_close(found["loss"], found["symmetric"] + found["directional"])
    assert list(tiny(DSSL, naive=True).loss(views(4), {})) == ["loss"]


def test_the_symmetric_part_is_simsiams() -> None:
    given = views(4)
    found = tiny(DSSL).eval().loss(given, {})["symmetric"]
    torch.testing.assert_close(found, tiny(SimSiam).eval().loss(given[:2], {})["loss"])
    naive = tiny(DSSL, naive=True).eval().loss(given, {})["loss"]
    torch.testing.assert_close(naive, tiny(SimSiam).eval().loss(given[2:], {})["loss"])


def test_a_batch_norm_sees_one_view_at_a_time() -> None:
    x1, x2, heavy_1, heavy_2 = views(4)
    method = tiny(DSSL).train()
    seen: list[Tensor] = []
    method.projector[-1].register_forward_hook(lambda module, inputs, z: seen.append(z.detach()))
    method.loss((x1, x2, heavy_1, heavy_2), {})
    method.loss((x1, 5 * x2 + 3, heavy_1, -heavy_2), {})
    assert len(seen) == 8
    for z in seen:
        torch.testing.assert_close(z.mean(0), torch.zeros(10), rtol=0, atol=1e-5)
    same = [any(torch.equal(z, other) for other in seen[4:]) for z in seen[:4]]
    assert sum(same) == 2  # those of the two views that were left as they were


def test_naive_never_looks_at_the_standard_views() -> None:
    method = tiny(DSSL, naive=True)
    x1, x2, heavy_1, heavy_2 = views(4)
    found = method.loss((x1, x2, heavy_1, heavy_2), {})
    assert torch.equal(found["loss"], method.loss((x1 * torch.nan, x2, heavy_1, heavy_2), {})["loss"])


def test_forward_gives_output_and_prediction() -> None:
    method = tiny(DSSL).eval()
    (x,) = views(1)
    z, p = method(x)
    torch.testing.assert_close([z, p], [method.embed(x), method.predictor(z)])
    assert not z.requires_grad
    assert p.requires_grad
    assert tiny(DSSL, stop_gradient=False)(x)[0].requires_grad


def test_every_setting_reaches_the_method() -> None:
    method = build(settings(beta=0.3, naive=True, stop_gradient=False, predictor="fixed"))
    assert isinstance(method, DSSL)
    assert (method.beta, method.naive, method.stop_gradient) == (0.3, True, False)
    assert not any(p.requires_grad for p in method.predictor.parameters())
    plain = build(settings(fix_predictor_lr=False))
    assert isinstance(plain, DSSL)
    assert (plain.beta, plain.naive, plain.stop_gradient, plain.fix_predictor_lr) == (0.1, False, True, False)


def test_every_parameter_learns() -> None:
    for naive in (False, True):
        method = tiny(DSSL, naive=naive)
        method.loss(views(4), {})["loss"].backward()
        assert gradient_names(method) == {name for name, _ in method.named_parameters()}
        groups = method.parameter_groups()
        assert sum(len(group["params"]) for group in groups) == len(list(method.parameters()))
        assert groups[1]["fix_lr"]
