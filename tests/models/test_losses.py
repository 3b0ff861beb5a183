"""The self-supervised losses against loops over the papers' equations, lightly, and their invariances."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from genssl.models.losses import (
    NORM_EPSILON,
    STD_EPSILON,
    UNIT_EPSILON,
    barlow_twins_loss,
    cosine_similarity,
    directional_loss,
    info_nce_loss,
    nt_xent_loss,
    simsiam_loss,
    vicreg_loss,
)
from genssl.runtime import generator

from ..peers import import_peer

Array = NDArray[np.float64]


def normal(*shape: int, counter: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "test", counter))


def rotation(d: int) -> Tensor:
    q: Tensor = torch.linalg.qr(normal(d, d, counter=99)).Q
    return q


def outputs(n: int = 9, d: int = 5) -> tuple[Tensor, Tensor]:
    """Two views' outputs (n, d): related, of several scales, neither centered nor white."""
    shared = normal(n, d) * torch.linspace(0.5, 4, d) @ normal(d, d, counter=1)
    return shared + 0.7 * normal(n, d, counter=2) + 1, shared + 0.7 * normal(n, d, counter=3) - 0.5


def named_outputs(n: int = 7, d: int = 4) -> dict[str, Tensor]:
    names = ("p1", "p2", "z1", "z2", "heavy_p1", "heavy_p2", "heavy_z1", "heavy_z2")
    return {name: normal(n, d, counter=10 + i) for i, name in enumerate(names)}


def exact(z: Tensor) -> Array:
    return z.detach().double().numpy()


def distance(a: Tensor, b: Tensor) -> float:
    """D: the negative cosine of the rows, averaged (Chen and He 2021, equation 1)."""
    cosines = []
    for x, y in zip(exact(a), exact(b), strict=True):
        dot = sum(float(u) * float(v) for u, v in zip(x, y, strict=True))
        cosines.append(dot / math.sqrt(sum(u * u for u in x)) / math.sqrt(sum(v * v for v in y)))
    return -float(np.mean(cosines))


def barlow_twins_by_hand(z1: Tensor, z2: Tensor, lambd: float) -> float:
    """Zbontar et al. 2021, equations 1 and 2, entry by entry."""
    a, b = (exact(z) - exact(z).mean(0) for z in (z1, z2))
    total = 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            lengths = math.sqrt(float((a[:, i] ** 2).sum())) * math.sqrt(float((b[:, j] ** 2).sum()))
            c = float((a[:, i] * b[:, j]).sum()) / lengths
            total += (1 - c) ** 2 if i == j else lambd * c**2
    return total


def vicreg_by_hand(z1: Tensor, z2: Tensor) -> dict[str, float]:
    """Bardes et al. 2022, equations 1 to 5; the variance terms averaged, the distance per dimension."""
    variance = covariance = 0.0
    for z in (exact(z1), exact(z2)):
        n, d = z.shape
        mean = z.mean(0)
        c = sum(np.outer(row - mean, row - mean) for row in z) / (n - 1)
        variance += sum(max(0.0, 1 - math.sqrt(c[j, j] + 1e-4)) for j in range(d)) / d / 2
        covariance += sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    squares = [(u - v) ** 2 for u, v in zip(exact(z1).flat, exact(z2).flat, strict=True)]
    return {"invariance": float(np.mean(squares)), "variance": variance, "covariance": covariance}


def cross_entropy_by_hand(anchor: Array, candidates: list[Array], positive: int, temperature: float) -> float:
    """-log of the share of the positive in the softmax over the candidates' cosines."""

    def score(other: Array) -> float:
        cosine = float(anchor @ other) / math.sqrt(float(anchor @ anchor)) / math.sqrt(float(other @ other))
        return math.exp(cosine / temperature)

    return -math.log(score(candidates[positive]) / sum(score(other) for other in candidates))


def nt_xent_by_hand(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """Chen et al. 2020, equation 1 and algorithm 1, output by output."""
    n, rows = len(z1), [*exact(z1), *exact(z2)]
    losses = []
    for i in range(2 * n):
        others = [rows[k] for k in range(2 * n) if k != i]
        partner = (i + n) % (2 * n)
        losses.append(cross_entropy_by_hand(rows[i], others, partner - (partner > i), temperature))
    return float(np.mean(losses))


def info_nce_by_hand(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> float:
    """He et al. 2020, equation 1, query by query."""
    others = [*exact(negatives)]
    pairs = zip(exact(queries), exact(keys), strict=True)
    return float(np.mean([cross_entropy_by_hand(q, [k, *others], 0, temperature) for q, k in pairs]))


# The cosine and SimSiam


def test_cosine_agrees_with_torch() -> None:
    a, b = outputs()
    expected = torch.nn.functional.cosine_similarity(a.double(), b.double())
    torch.testing.assert_close(cosine_similarity(a, b).double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine_similarity(a, -2 * a), -torch.ones(9))


def test_rows_that_vanish_have_torchs_cosine_and_slope() -> None:
    lengths = torch.logspace(-12, -4, 9)[:, None]
    lengths[0] = 0
    a, b = outputs()
    ours, theirs = ((lengths * a).requires_grad_() for _ in range(2))
    found, expected = cosine_similarity(ours, b), torch.nn.functional.cosine_similarity(theirs, b)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.sum().backward(), expected.sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.norm(dim=1).max() <= 1.001 / UNIT_EPSILON
    rows = [0, *range(5, 9)]  # between them torch's slope at a clamped length is not that of its value
    steepest = theirs.grad[rows].abs().amax(1, keepdim=True)
    difference = (ours.grad - theirs.grad)[rows] / steepest
    assert difference.abs().max() < 1e-4


def test_cosine_ignores_lengths_and_a_common_rotation() -> None:
    a, b = outputs()
    lengths = torch.logspace(-3, 3, 9)[:, None]
    expected = cosine_similarity(a, b)
    torch.testing.assert_close(cosine_similarity(lengths * a, lengths.flip(0) * b), expected)
    torch.testing.assert_close(cosine_similarity(a @ rotation(5), b @ rotation(5)), expected)


def test_simsiam_loss_is_the_papers() -> None:
    given = {name: value for name, value in named_outputs().items() if name in {"p1", "p2", "z1", "z2"}}
    expected = (distance(given["p1"], given["z2"]) + distance(given["p2"], given["z1"])) / 2
    assert float(simsiam_loss(**given)) == pytest.approx(expected, abs=1e-6)
    swapped = {"p1": given["p2"], "p2": given["p1"], "z1": given["z2"], "z2": given["z1"]}
    assert float(simsiam_loss(**swapped)) == pytest.approx(expected, abs=1e-6)


def test_simsiam_loss_lies_between_its_bounds() -> None:
    z = normal(6, 3)
    assert float(simsiam_loss(p1=z, p2=2 * z, z1=z, z2=z)) == pytest.approx(-1)
    assert float(simsiam_loss(p1=-z, p2=-z, z1=z, z2=z)) == pytest.approx(1)
    aside = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert float(simsiam_loss(p1=aside[0], p2=aside[0], z1=aside[1], z2=aside[1])) == 0


def test_byol_loss_is_four_plus_four_of_it() -> None:
    """Grill et al. 2020, equation 2: squared distances of unit vectors, for both orders of the views."""
    given = {name: value for name, value in named_outputs().items() if name in {"p1", "p2", "z1", "z2"}}
    unit = {name: exact(v) / np.linalg.norm(exact(v), axis=1, keepdims=True) for name, v in given.items()}
    squares = ((unit["p1"] - unit["z2"]) ** 2).sum(1) + ((unit["p2"] - unit["z1"]) ** 2).sum(1)
    assert 4 + 4 * float(simsiam_loss(**given)) == pytest.approx(squares.mean(), abs=1e-5)


# DSSL


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.7])
def test_directional_loss_is_the_papers_term_by_term(beta: float) -> None:
    given = named_outputs()
    symmetric = distance(given["p1"], given["z2"]) / 2 + distance(given["p2"], given["z1"]) / 2
    to_standard = distance(given["heavy_p1"], given["z1"]) + distance(given["heavy_p2"], given["z2"])
    to_heavy = distance(given["p1"], given["heavy_z1"]) + distance(given["p2"], given["heavy_z2"])
    directional = (1 - beta) / 2 * to_standard + beta / 2 * to_heavy
    found = directional_loss(**given, beta=beta)
    assert float(found["symmetric"]) == pytest.approx(symmetric, abs=1e-6)
    assert float(found["directional"]) == pytest.approx(directional, abs=1e-6)
    assert float(found["loss"]) == pytest.approx(symmetric + directional, abs=1e-6)


def test_directional_loss_never_compares_heavy_views_with_each_other() -> None:
    given = named_outputs()
    gradients = []
    for moved in (0.0, 2.0):
        heavy = {k: v.clone().requires_grad_() for k, v in given.items() if k.startswith("heavy_p")}
        following = {k: v + moved for k, v in given.items() if k.startswith("heavy_z")}
        directional_loss(**{**given, **following, **heavy}, beta=0.4)["loss"].backward()
        gradients.append([p.grad for p in heavy.values()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_directional_loss_ignores_the_order_of_the_pairs() -> None:
    given: dict[str, Any] = named_outputs()
    swapped: dict[str, Any] = {
        name[:-1] + {"1": "2", "2": "1"}[name[-1]]: value for name, value in given.items()
    }
    torch.testing.assert_close(directional_loss(**swapped), directional_loss(**given))


# Barlow Twins


@pytest.mark.parametrize("lambd", [0.0, 5e-3, 2.0])
def test_barlow_twins_loss_is_the_papers(lambd: float) -> None:
    z1, z2 = (100 * z for z in outputs())  # variances so large that the norm's epsilon is below 1e-8 of them
    expected = barlow_twins_by_hand(z1, z2, lambd)
    assert float(barlow_twins_loss(z1, z2, lambd)) == pytest.approx(expected, rel=1e-5)


def test_barlow_twins_of_identical_outputs() -> None:
    z = outputs(200, 4)[0]
    white = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T, correction=0))).T
    assert float(barlow_twins_loss(white, white)) == pytest.approx(0, abs=1e-6)
    # two equal columns have all their correlations at 1: lambd for each of the two off the diagonal
    twice = white[:, :1].expand(-1, 2)
    assert float(barlow_twins_loss(twice, twice, 0.3)) == pytest.approx(0.6, abs=1e-4)
    assert float(barlow_twins_loss(white, -white, 0.3)) == pytest.approx(16, abs=1e-3)
    assert float(barlow_twins_loss(white[:, :2], white[:, 2:], 0.3)) == pytest.approx(2, abs=1e-5)


def test_barlow_twins_standardises_as_a_batch_norm_does() -> None:
    z1, z2 = (0.01 * z for z in outputs())  # small enough for the epsilon to matter
    norm = torch.nn.BatchNorm1d(5, eps=NORM_EPSILON, affine=False)
    correlation = (norm(z1).T @ norm(z2) / 9).double()
    eye = torch.eye(5, dtype=torch.float64)
    expected = ((correlation - eye).square() * torch.where(eye > 0, 1.0, 5e-3)).sum()
    torch.testing.assert_close(barlow_twins_loss(z1, z2).double(), expected, rtol=1e-5, atol=0)


def test_barlow_twins_ignores_units_and_order() -> None:
    z1, z2 = (10 * z for z in outputs())
    expected = barlow_twins_loss(z1, z2)
    scale = torch.tensor([0.5, 2, 7, 1, 3])
    rows, columns = torch.randperm(9, generator=generator(0, "test")), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(barlow_twins_loss(z1 * scale + 4, z2 * scale.flip(0) - 9), expected)
    torch.testing.assert_close(barlow_twins_loss(z1[rows], z2[rows]), expected)
    torch.testing.assert_close(barlow_twins_loss(z1[:, columns], z2[:, columns]), expected)
    torch.testing.assert_close(barlow_twins_loss(z2, z1), expected)
    assert float(barlow_twins_loss(z1[rows], z2)) > 2 * float(expected)  # but what belongs together matters


# VICReg


def test_vicreg_loss_is_the_papers() -> None:
    z1, z2 = (0.3 * z for z in outputs())  # some columns' deviations are below 1, some above
    deviations = torch.cat([z1.std(0), z2.std(0)])
    assert 0 < int((deviations < 1).sum()) < len(deviations)
    expected = vicreg_by_hand(z1, z2)
    found = vicreg_loss(z1, z2, 3.0, 5.0, 7.0)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name
    total = 3 * expected["invariance"] + 5 * expected["variance"] + 7 * expected["covariance"]
    assert float(found["loss"]) == pytest.approx(total, rel=1e-5)


def test_vicreg_weighs_by_default_as_the_paper_does() -> None:
    z1, z2 = outputs()
    found = vicreg_loss(z1, z2)
    expected = 25 * found["invariance"] + 25 * found["variance"] + found["covariance"]
    torch.testing.assert_close(found["loss"], expected)


def test_vicreg_of_constant_outputs() -> None:
    z1 = torch.full((6, 3), 0.25, requires_grad=True)
    found = vicreg_loss(z1, torch.full((6, 3), 1.25))
    found["loss"].backward()
    terms = {name: value.item() for name, value in found.items()}
    assert terms["variance"] == pytest.approx(1 - math.sqrt(STD_EPSILON))
    assert (terms["invariance"], terms["covariance"]) == (1, 0)
    assert z1.grad is not None
    torch.testing.assert_close(z1.grad, torch.full((6, 3), -2 * 25 / 18))  # of the distance alone


def test_vicreg_of_outputs_spread_far_enough() -> None:
    z = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])  # uncorrelated, deviation 2.3
    assert all(float(value) == 0 for value in vicreg_loss(z, z).values())


def test_vicreg_ignores_a_common_translation_and_order() -> None:
    z1, z2 = outputs()
    expected = vicreg_loss(z1, z2)
    rows, columns = torch.randperm(9, generator=generator(0, "test")), torch.tensor([3, 1, 4, 0, 2])
    shift = torch.tensor([3.0, -2, 0, 5, 1])
    torch.testing.assert_close(vicreg_loss(z1 + shift, z2 + shift), expected)
    torch.testing.assert_close(vicreg_loss(z1[rows], z2[rows]), expected)
    torch.testing.assert_close(vicreg_loss(z1[:, columns], z2[:, columns]), expected)
    torch.testing.assert_close(vicreg_loss(z2, z1), expected)
    moved = vicreg_loss(z1 + shift, z2)  # one branch alone: the distance sees it, the other terms do not
    torch.testing.assert_close(moved["covariance"], expected["covariance"])
    torch.testing.assert_close(moved["variance"], expected["variance"])
    assert float(moved["invariance"]) > float(expected["invariance"]) + 1


# SimCLR and MoCo


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_nt_xent_is_the_papers(temperature: float) -> None:
    z1, z2 = outputs()
    expected = nt_xent_by_hand(z1, z2, temperature)
    assert float(nt_xent_loss(z1, z2, temperature)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_info_nce_is_the_papers(temperature: float) -> None:
    (q, k), negatives = outputs(), normal(4, 5, counter=4)
    expected = info_nce_by_hand(q, k, negatives, temperature)
    assert float(info_nce_loss(q, k, negatives, temperature)) == pytest.approx(expected, rel=1e-5)


def test_contrast_where_all_outputs_are_the_same_is_a_guess_among_all() -> None:
    z = torch.ones(6, 3)
    assert float(nt_xent_loss(z, 2 * z)) == pytest.approx(math.log(11))
    assert float(info_nce_loss(z, z, z[:4])) == pytest.approx(math.log(5))


def test_nt_xent_ignores_order_lengths_and_rotations() -> None:
    z1, z2 = outputs()
    expected = nt_xent_loss(z1, z2)
    rows = torch.randperm(9, generator=generator(0, "test"))
    lengths = torch.logspace(-3, 3, 9)[:, None]
    torch.testing.assert_close(nt_xent_loss(z1[rows], z2[rows]), expected)
    torch.testing.assert_close(nt_xent_loss(z2, z1), expected)
    torch.testing.assert_close(nt_xent_loss(lengths * z1, lengths.flip(0) * z2), expected)
    torch.testing.assert_close(nt_xent_loss(z1 @ rotation(5), z2 @ rotation(5)), expected)
    assert float(nt_xent_loss(z1[rows], z2)) > float(expected) + 0.1  # but what belongs together matters


def test_info_nce_ignores_the_order_of_queries_and_of_negatives() -> None:
    (q, k), negatives = outputs(), normal(4, 5, counter=4)
    expected = info_nce_loss(q, k, negatives)
    rows = torch.randperm(9, generator=generator(0, "test"))
    torch.testing.assert_close(info_nce_loss(q[rows], k[rows], negatives.flip(0)), expected)
    assert float(info_nce_loss(q[rows], k, negatives)) > float(expected) + 0.1


def test_contrast_is_finite_at_low_temperatures() -> None:
    z1, z2 = (z.requires_grad_() for z in outputs())
    loss = nt_xent_loss(z1, z2, 1e-3) + info_nce_loss(z1, z2, normal(4, 5), 1e-3)
    loss.backward()
    assert loss.isfinite()
    assert z1.grad is not None
    assert z1.grad.isfinite().all()


# All of them

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: -cosine_similarity(a, b).mean(),
    "barlow_twins": barlow_twins_loss,
    "vicreg": lambda a, b: vicreg_loss(a, b)["loss"],
    "nt_xent": lambda a, b: nt_xent_loss(a, b, 0.5),
    "info_nce": lambda a, b: info_nce_loss(a, b, normal(7, a.shape[1], counter=60), 0.1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_agrees_with_lightly(name: str) -> None:
    peers = import_peer("lightly.loss")
    peer = {
        "cosine": peers.NegativeCosineSimilarity(),
        "barlow_twins": peers.BarlowTwinsLoss(lambda_param=5e-3),
        "vicreg": peers.VICRegLoss(),
        "nt_xent": peers.NTXentLoss(temperature=0.5),
        "info_nce": peers.NTXentLoss(temperature=0.1, memory_bank_size=(7, 6)),
    }[name]
    if name == "info_nce":
        peer.memory_bank.bank = torch.nn.functional.normalize(normal(7, 6, counter=60))
    z1, z2 = outputs(32, 6)
    torch.testing.assert_close(LOSSES[name](z1, z2), peer(z1, z2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast(name: str) -> None:
    z1, z2 = outputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LOSSES[name](z1, z2)
        half = LOSSES[name](z1.bfloat16(), z2.bfloat16())
    assert found.dtype == half.dtype == torch.float32
    assert torch.equal(found, LOSSES[name](z1, z2))
    assert torch.equal(half, LOSSES[name](z1.bfloat16().float(), z2.bfloat16().float()))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("which", ["one row", "all rows", "one branch", "constant"])
def test_finite_where_outputs_vanish(name: str, which: str) -> None:
    z1, z2 = outputs()
    z1[0 if which == "one row" else slice(None)] = 0.0
    if which == "constant":
        z1, z2 = torch.full_like(z1, 3.0), torch.full_like(z2, 3.0)
    elif which == "all rows":
        z2 = torch.zeros_like(z2)
    z1.requires_grad_(), z2.requires_grad_()
    loss = LOSSES[name](z1, z2)
    loss.backward()
    assert loss.isfinite()
    for z in (z1, z2):
        assert z.grad is not None
        assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_losses_slopes(name: str) -> None:
    z1, z2 = (z.requires_grad_() for z in outputs(6, 3))
    LOSSES[name](z1, z2).backward()
    direction = normal(6, 3, counter=50), normal(6, 3, counter=51)
    assert z1.grad is not None
    assert z2.grad is not None
    slope = float((z1.grad * direction[0]).sum() + (z2.grad * direction[1]).sum())

    def along(step: float) -> float:
        a, b = z1.detach() + step * direction[0], z2.detach() + step * direction[1]
        if name == "cosine":
            return distance(a, b)
        if name == "barlow_twins":
            return barlow_twins_by_hand(a, b, 5e-3)
        if name == "nt_xent":
            return nt_xent_by_hand(a, b, 0.5)
        if name == "info_nce":
            return info_nce_by_hand(a, b, normal(7, 3, counter=60), 0.1)
        terms = vicreg_by_hand(a, b)
        return 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]

    step = 1e-3
    assert slope == pytest.approx((along(step) - along(-step)) / (2 * step), rel=5e-3, abs=1e-4)
