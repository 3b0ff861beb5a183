"""Projected gradient ascent: closed forms of a linear model, the ball, other libraries; Wilson's interval."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from genssl.metrics.attacks import Attack, Norm, pgd, project, random_start, steepest, wilson_interval
from genssl.runtime import generators

from ..peers import import_peer

SHAPE = (6, 3, 4, 4)


def images(low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))


def weights() -> Tensor:
    return torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5)
    return nn.Sequential(*layers).requires_grad_(False)


def cross_entropy(model: nn.Module) -> Callable[[Tensor], Tensor]:
    labels = torch.arange(SHAPE[0]) % 5
    return lambda x: nn.functional.cross_entropy(model(x), labels, reduction="none")


def norms(delta: Tensor, norm: Norm) -> Tensor:
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


def test_the_best_perturbation_of_a_linear_model_is_its_signs() -> None:
    # max of w . (x + d) over |d|_inf <= eps: d = eps sign(w), wherever the walk begins; [0, 1] is far away
    attack, x, w = Attack(epsilon=0.03, step_size=0.01, steps=7), images(0.2, 0.8), weights()
    attacked = pgd(lambda v: (v * w).flatten(1).sum(1), x, attack, torch.Generator().manual_seed(3))
    assert torch.equal(attacked, (x + (0.03 * w.sign()).clamp(-0.03, 0.03)).clamp(0, 1))


def test_the_best_perturbation_in_l2_is_the_unit_vector() -> None:
    attack, x, w = Attack("l2", epsilon=0.1, step_size=0.05, steps=60), images(0.3, 0.7), weights()
    attacked = pgd(lambda v: (v * w).flatten(1).sum(1), x, attack, torch.Generator().manual_seed(3))
    assert torch.allclose(attacked - x, (0.1 * w / w.norm()).expand(SHAPE), atol=1e-5)


def test_a_linear_model_at_the_edge_moves_as_far_as_images_go() -> None:
    attack, x, w = Attack(epsilon=0.1, step_size=0.05, steps=6), images(0.0, 0.05), weights()
    attacked = pgd(lambda v: -(v * w).flatten(1).sum(1), x, attack, torch.Generator().manual_seed(3))
    assert torch.equal(attacked, torch.where(w > 0, torch.zeros_like(x), x + 0.1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.0, 0.02, 0.4, 30.0])
def test_the_ball_and_the_range_are_never_left(norm: Norm, epsilon: float) -> None:
    x, seen = images(), []
    loss = cross_entropy(network())

    def watched(v: Tensor) -> Tensor:
        seen.append(v.detach().clone())
        return loss(v)

    attack = Attack(norm, epsilon=epsilon, step_size=epsilon, steps=5)
    seen.append(pgd(watched, x, attack, torch.Generator().manual_seed(3)))
    assert len(seen) == 6
    for v in seen:
        assert bool(((v >= 0) & (v <= 1)).all())
        assert bool((norms(v - x, norm) <= epsilon + 1e-6).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_loss_rises_and_no_step_is_no_attack(norm: Norm) -> None:
    loss, x = cross_entropy(network()), images()
    attacked = pgd(loss, x, Attack(norm, 0.1, 0.025, 20), torch.Generator().manual_seed(3))
    assert bool((loss(attacked) > loss(x)).all())
    assert torch.equal(pgd(loss, x, Attack(norm, 0.1, 0.025, 0)), x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_is_attacked_alike_in_every_batch(norm: Norm) -> None:
    model, x, attack = network(), images(), Attack(norm, 0.1, 0.025, 4)

    def losses(rows: slice) -> Callable[[Tensor], Tensor]:
        labels = (torch.arange(SHAPE[0]) % 5)[rows]
        return lambda v: nn.functional.cross_entropy(model(v), labels, reduction="none")

    whole = pgd(losses(slice(6)), x, attack, generators(0, "eval", range(6)))
    part = pgd(losses(slice(2, 4)), x[2:4], attack, generators(0, "eval", range(2, 4)))
    assert torch.allclose(whole[2:4], part, atol=1e-6)


def test_the_mean_over_draws_finds_what_one_draw_hides() -> None:
    # The gradient is w plus a noise that is far larger: the sign of one draw is a coin's
    x, w = images(0.4, 0.6), weights().sign()
    noise = torch.Generator().manual_seed(5)

    def losses(v: Tensor) -> Tensor:
        return (v * (w + 8 * torch.randn(v.shape, generator=noise))).flatten(1).sum(1)

    attack = Attack(epsilon=0.05, step_size=0.1, steps=1)
    agree = [(pgd(losses, x, attack, draws=draws) - x).sign().eq(w).float().mean() for draws in (1, 400)]
    # P(sign of the mean of k is right) = Phi(sqrt(k) / 8): 0.550 and 0.994; six deviations over 288 entries
    assert abs(float(agree[0]) - 0.550) < 6 * math.sqrt(0.25 / 288)
    assert float(agree[1]) > 0.994 - 6 * math.sqrt(0.006 / 288)


def test_starts_fill_the_ball_evenly() -> None:
    x = torch.full((4000, 1, 1, 2), 0.5)
    square = random_start(x, Attack("linf", 0.2), torch.Generator().manual_seed(0))
    disc = random_start(x, Attack("l2", 0.2), torch.Generator().manual_seed(0))
    # Within half the radius: a quarter of both areas
    drawn: list[tuple[Tensor, Norm]] = [(square, "linf"), (disc, "l2")]
    for delta, norm in drawn:
        inside = (norms(delta, norm) < 0.1).float().mean()
        assert abs(float(inside) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_projection_is_idempotent_and_keeps_what_is_inside() -> None:
    x, attack = images(0.2, 0.8), Attack("l2", 0.3)
    far = project(x + 5 * weights(), x, attack)
    assert torch.allclose(project(far, x, attack), far, atol=1e-6)
    near = x + 0.01 * steepest(weights().expand(SHAPE), "l2")
    assert torch.allclose(project(near, x, attack), near, atol=1e-7)
    assert not steepest(torch.zeros(SHAPE), "l2").any()


@pytest.mark.parametrize(("right", "n"), [(0, 20), (20, 20), (7, 64), (128, 256)])
def test_the_interval_is_wilson_s(right: int, n: int) -> None:
    theirs = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_interval_of_none_and_of_all_ends_exactly() -> None:
    assert wilson_interval(0, 64)[0] == 0
    assert wilson_interval(64, 64)[1] == 1


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_share(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(right, n)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_foolbox_walks_the_same_way(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    foolbox = import_peer("foolbox")
    model, x = network(), images()
    labels = torch.arange(SHAPE[0]) % 5
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    theirs = kind(abs_stepsize=0.02, steps=9, random_start=False)
    _, expected, _ = theirs(foolbox.PyTorchModel(model.eval(), (0, 1), "cpu"), x, labels, epsilons=0.08)
    monkeypatch.setattr("genssl.metrics.attacks.random_start", lambda images, *_: torch.zeros_like(images))
    ours = pgd(cross_entropy(model), x, Attack(norm, 0.08, 0.02, 9))
    assert torch.allclose(ours, expected, atol=1e-5)
