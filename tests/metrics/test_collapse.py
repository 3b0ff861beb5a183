import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from genssl.metrics import collapse
from genssl.metrics.collapse import EPSILON, output_scale, output_std, rankme
from genssl.runtime import generator


def normal(*shape: int, counter: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "test", counter))


def rotation(d: int) -> Tensor:
    q: Tensor = torch.linalg.qr(normal(d, d, counter=9)).Q
    return q


def uneven(n: int = 200, d: int = 12) -> Tensor:
    """Rows that are neither collapsed nor isotropic, and not centered."""
    return normal(n, d) * torch.linspace(0.1, 3, d) + 0.5


def test_std_agrees_with_numpy() -> None:
    z = uneven()
    rows = z.double().numpy()
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert output_std(z) == pytest.approx(units.std(axis=0).mean() * math.sqrt(12), rel=1e-6)


@pytest.mark.parametrize("d", [2, 64])
def test_std_of_a_gaussian_is_one(d: int) -> None:
    # With x_j = d var_j: mean x = 1 - |mean of the rows|^2, so the mean of sqrt(x_j) is at most 1 (Jensen).
    # sqrt(x) >= 1 + (x - 1) / 2 - (x - 1)^2 / 2, and E (x - 1)^2 < 2/N, so that about 1.5/N is missing.
    assert 1 - 6 / 2000 < output_std(normal(2000, d)) <= 1 + 1e-6


def test_std_of_two_opposite_rows_and_of_the_axes() -> None:
    assert output_std(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])) == pytest.approx(math.sqrt(2) / 2)
    # each channel of d axes: mean 1/d, mean square 1/d
    assert output_std(7 * torch.eye(5)) == pytest.approx(math.sqrt(1 - 1 / 5))


def test_constant_outputs_have_no_std_and_rank_one() -> None:
    z = normal(1, 16).expand(300, 16)
    assert output_std(z) < 1e-6
    assert output_std(z * torch.linspace(0.1, 9, 300)[:, None]) < 1e-6  # one direction
    assert rankme(z) == pytest.approx(1, abs=1e-4)
    assert output_std(torch.zeros(5, 4)) == 0
    assert rankme(torch.zeros(5, 4)) == 0


def test_scale_agrees_with_numpy_and_is_all_that_sees_outputs_shrink() -> None:
    z = uneven()
    assert output_scale(z) == pytest.approx(np.sqrt(z.double().numpy().var(axis=0).mean()), rel=1e-6)
    assert output_scale(0.01 * z) == pytest.approx(0.01 * output_scale(z), rel=1e-6)
    assert output_scale(z + 7) == pytest.approx(output_scale(z), rel=1e-5)
    assert output_scale(z @ rotation(12)) == pytest.approx(output_scale(z), rel=1e-6)
    assert output_std(0.01 * z) == pytest.approx(output_std(z), rel=1e-5)
    assert rankme(0.01 * z) == pytest.approx(rankme(z), rel=1e-5)
    assert output_scale(torch.ones(5, 4)) == 0
    assert math.isnan(output_scale(torch.tensor([[1.0], [torch.nan]])))


def test_lengths_of_rows_do_not_change_the_std() -> None:
    z = uneven()
    lengths = torch.logspace(-3, 3, 200)[:, None]
    assert output_std(lengths * z) == pytest.approx(output_std(z), rel=1e-5)


@pytest.mark.parametrize("shape", [(100, 12), (7, 12), (12, 12)])
def test_rank_agrees_with_numpy(shape: tuple[int, int]) -> None:
    z = uneven(*shape)
    values = np.linalg.svd(z.double().numpy(), compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert rankme(z) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


@pytest.mark.parametrize("r", [1, 3, 20])
def test_rank_of_r_equal_singular_values_is_r(r: int) -> None:
    z = torch.linalg.qr(normal(60, r)).Q @ rotation(20)[:r]
    # each of the 20 epsilons adds at most -eps log eps to the entropy, and takes less from the others
    slack = 20 * EPSILON * -math.log(EPSILON)
    assert rankme(z) == pytest.approx(r, rel=2 * slack + 1e-5)


def test_rank_of_a_known_spectrum() -> None:
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rankme(torch.diag(torch.tensor([3.0, -1.0]))) == pytest.approx(math.exp(entropy), rel=1e-5)


def test_rotation_scale_and_order_do_not_change_the_rank() -> None:
    z = uneven()
    expected = rankme(z)
    for other in (1e-3 * z, z @ rotation(12), z.flip(0), z.double(), -z):
        assert rankme(other) == pytest.approx(expected, rel=1e-5)
    assert rankme(normal(4000, 12)) > 11.9


def test_rank_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    z = uneven()
    expected = rankme(z)
    monkeypatch.setattr(collapse, "ROWS", 7)
    assert rankme(z) == pytest.approx(expected, rel=1e-9)


def test_half_precision_and_gradients() -> None:
    z = uneven().requires_grad_()
    assert output_std(z.bfloat16()) == output_std(z.bfloat16().float())
    assert rankme(z.half()) == rankme(z.half().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (output_std(z), rankme(z)) == (output_std(z.detach()), rankme(z.detach()))


def test_what_is_not_finite_has_no_number() -> None:
    for value in (torch.nan, torch.inf):
        z = uneven()
        z[3, 2] = value
        assert math.isnan(output_std(z))
        assert math.isnan(rankme(z))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2)])
@pytest.mark.parametrize("measure", [output_std, rankme, output_scale])
def test_refuses_what_is_no_table_of_outputs(
    measure: Callable[[Tensor], object], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"outputs must be \(N, d\)"):
        measure(torch.ones(shape))
