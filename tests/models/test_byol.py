"""BYOL: its target network against the closed form of a moving average, and what no gradient may reach."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genssl.config import BYOLConfig, SimSiamConfig
from genssl.data.split import Split
from genssl.models.build import build
from genssl.models.byol import BYOL
from genssl.models.losses import simsiam_loss
from genssl.models.method import count_parameters
from genssl.runtime import generator
from genssl.training.loop import Training
from tests.training.toy import ToyViews

from .siamese_data import gradient_names, tiny, views

PAIRS = (("encoder", "target_encoder"), ("projector", "target_projector"))


def settings(**changes: Any) -> BYOLConfig:
    small = {"encoder": "small", "projector_dim": 8, "projector_hidden": 12, "predictor_hidden": 6}
    return BYOLConfig(**{**small, "epochs": 2, "batch_size": 4, "precision": "fp32", **changes})


def training(config: Any, method: BYOL | None = None) -> Training:
    images = torch.randint(0, 256, (12, 3, 8, 8), generator=generator(0, "test"), dtype=torch.uint8)
    split = Split(images, None, (), "noise", "train", "")
    chosen = method or build(config)
    return Training(chosen, ToyViews(), split, config)


def online(method: Any) -> list[Tensor]:
    return [p for name, _ in PAIRS for p in getattr(method, name).parameters()]


def target(method: Any) -> list[Tensor]:
    return [p for _, name in PAIRS for p in getattr(method, name).parameters()]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().double() for tensor in copy.deepcopy(tensors)]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_target_is_the_moving_average_of_the_online_weights(schedule: str) -> None:
    config = settings(tau=0.8, tau_schedule=schedule)
    loop = training(config)
    seen = [copies(online(loop.method))]  # theta_0, which is xi_0
    for _ in loop.steps():
        seen.append(copies(online(loop.method)))
    steps = len(seen) - 1
    assert steps == loop.total_steps == 6
    taus = [1 - 0.2 * (math.cos(math.pi * k / steps) + 1) / 2 for k in range(1, steps + 1)]
    if schedule == "constant":
        taus = [0.8] * steps
    # xi_K = sum_k theta_k (1 - tau_k) tau_(k+1) ... tau_K, and theta_0 tau_1 ... tau_K
    shares = [math.prod(taus)] + [(1 - taus[k]) * math.prod(taus[k + 1 :]) for k in range(steps)]
    assert sum(shares) == pytest.approx(1)
    for place, found in enumerate(target(loop.method)):
        expected = sum(share * theta[place] for share, theta in zip(shares, seen, strict=True))
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_tau_follows_the_paper() -> None:
    method = tiny(BYOL, tau=0.996)
    assert method.tau_at(0) == pytest.approx(0.996)
    assert method.tau_at(0.5) == pytest.approx(0.998)
    assert method.tau_at(1) == 1
    constant = tiny(BYOL, tau=0.996, tau_schedule="constant")
    assert {constant.tau_at(share) for share in (0, 0.3, 1)} == {0.996}


def test_with_tau_0_and_equal_settings_byol_is_simsiam() -> None:
    """To the bit: losses, weights and statistics after every step (docs/simsiam.md, 3.8)."""
    equal = {
        "encoder": "small", "projector_dim": 8, "projector_hidden": 12, "predictor_hidden": 6,
        "learning_rate": 0.2, "weight_decay": 1e-3, "epochs": 2, "batch_size": 4, "precision": "fp32",
    }  # fmt: skip
    byol = training(BYOLConfig(**{**equal, "tau": 0.0, "tau_schedule": "constant"}))
    simsiam = training(SimSiamConfig(**{**equal, "output_norm": False, "fix_predictor_lr": False}))
    start = copies(online(simsiam.method))
    for ours, theirs in zip(byol.steps(), simsiam.steps(), strict=True):
        assert torch.equal(ours.losses["loss"], theirs.losses["loss"])
        found = byol.method.state_dict()
        expected = simsiam.method.state_dict()
        assert set(expected) == {name for name in found if not name.startswith("target_")}
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    moved = copies(online(simsiam.method))
    assert not any(torch.equal(a, b) for a, b in zip(start, moved, strict=True) if a.ndim > 1)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_extremes_of_tau(tau: float) -> None:
    config = settings(tau=tau, tau_schedule="constant")
    loop = training(config)
    start = copy.deepcopy(target(loop.method))
    list(loop.steps())
    expected = online(loop.method) if tau == 0 else start
    assert all(torch.equal(a, b) for a, b in zip(target(loop.method), expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(online(loop.method), start, strict=True))


def test_the_target_starts_as_the_online_network_and_shares_nothing_with_it() -> None:
    method: Any = build(settings())
    for ours, theirs in zip(online(method), target(method), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    x, _ = views()
    assert torch.equal(method.eval().target(x), method.outputs(x))


def test_no_gradient_reaches_the_target() -> None:
    method = tiny(BYOL)
    method.loss(views(), {})["loss"].backward()
    reached = gradient_names(method)
    assert reached == {name for name, _ in method.named_parameters() if not name.startswith("target_")}
    assert all(p.grad is None and not p.requires_grad for p in target(method))
    groups = method.parameter_groups()
    given = {id(p) for group in groups for p in group["params"]}
    assert given == {id(p) for p in method.parameters() if p.requires_grad}
    assert len(groups) == 1


def test_the_target_is_counted_and_not_as_trained() -> None:
    method = build(settings())
    of_target = sum(p.numel() for p in target(method))
    trained, total = count_parameters(method)
    assert trained == sum(p.numel() for group in method.parameter_groups() for p in group["params"])
    assert total - trained == of_target > 0


def test_each_prediction_is_compared_with_the_target_of_the_other_view() -> None:
    method = tiny(BYOL).eval()
    with torch.no_grad():
        method.target_encoder.conv1.weight.mul_(-0.5)  # so that it differs from the online network
    x1, x2 = views()
    p1, p2 = method.predictor(method.embed(x1)), method.predictor(method.embed(x2))
    z1, z2 = method.target(x1), method.target(x2)
    assert not torch.allclose(z1, method.embed(x1), atol=1e-2)
    expected = simsiam_loss(p1=p1, p2=p2, z1=z1, z2=z2)
    torch.testing.assert_close(method.loss((x1, x2), {})["loss"], expected)
    torch.testing.assert_close(method.loss((x2, x1), {})["loss"], expected)


def test_batch_norms_see_one_view_at_a_time_and_a_target_keeps_its_own_statistics() -> None:
    method = tiny(BYOL).train()
    x1, x2 = views()
    seen: list[Tensor] = []
    method.target_projector[1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    method.loss((x1, x2), {})
    method.loss((x1, 5 * x2 + 3), {})
    assert len(seen) == 4
    assert sum(torch.equal(a, b) for a, b in zip(seen[:2], seen[2:], strict=True)) == 1
    before = copy.deepcopy(method.target_encoder.bn1.state_dict())
    method.after_step(0.5)
    after = method.target_encoder.bn1.state_dict()
    assert torch.equal(before["running_mean"], after["running_mean"])
    assert int(after["num_batches_tracked"]) == 4


class Poisoned(BYOL):
    """Gives a loss that is not finite at one step."""

    at, calls = 3, 0

    def loss(self, views: tuple[Tensor, ...], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        found = super().loss(views, draws)
        return found if self.calls - 1 != self.at else {"loss": found["loss"] * torch.nan}


def test_a_step_that_is_not_finite_leaves_the_target_alone() -> None:
    config = settings(tau=0.5)
    method: Any = build(config)
    method.__class__ = Poisoned
    loop = training(config, method)
    steps = loop.steps()
    for _ in range(3):
        next(steps)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    next(steps), next(steps)
    assert loop.guard.first_bad_step() == 3
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_every_setting_reaches_the_method() -> None:
    method = build(settings(tau=0.7, tau_schedule="constant", predictor="identity", projector_layers=1))
    assert isinstance(method, BYOL)
    assert (method.tau, method.tau_schedule) == (0.7, "constant")
    assert not list(method.predictor.parameters())
    assert [tuple(p.shape) for p in method.projector.parameters()] == [(8, 128), (8,)]
    plain = build(settings())
    assert isinstance(plain, BYOL)
    hidden = [tuple(p.shape) for p in plain.predictor.parameters() if p.ndim == 2]
    assert hidden == [(6, 8), (8, 6)]
