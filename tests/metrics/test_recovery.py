import math

import pytest
import torch

from genssl.metrics.reconstruction import crossings, half_crossing, is_top1_match, mean_squared_error, psnr
from genssl.runtime import generator


def kept(*shares: float, queries: int = 100) -> torch.Tensor:
    """(L, Q): the first queries are kept, as many as the share says."""
    places = torch.arange(queries)
    return torch.stack([places < round(share * queries) for share in shares])


def test_psnr_of_known_errors() -> None:
    x = torch.zeros(3, 3, 4, 4)
    y = torch.stack([x[0], x[1] + 0.2, x[2] - 2.0])
    mse = mean_squared_error(x, y)
    torch.testing.assert_close(mse, torch.tensor([0.0, 0.04, 4.0], dtype=torch.float64))
    torch.testing.assert_close(psnr(mse), torch.tensor([120.0, 20.0, 0.0], dtype=torch.float64))


def test_identity_is_kept_up_to_half_way_to_the_next() -> None:
    candidates = torch.eye(8) * 10
    own = torch.tensor([2, 2, 2])
    share = torch.tensor([0.0, 0.49, 0.51])[:, None]
    restored = candidates[2] + share * (candidates[5] - candidates[2])
    assert is_top1_match(candidates, restored, own).tolist() == [True, True, False]


def test_copies_of_an_original_do_no_harm() -> None:
    candidates = torch.randn(20, 50, generator=generator(0, "test"))
    candidates[17] = candidates[3]
    restored = candidates[[3, 17]] + 0.01
    assert is_top1_match(candidates, restored, torch.tensor([17, 3])).all()
    assert not is_top1_match(candidates, restored, torch.tensor([16, 4])).any()


def test_half_level_is_interpolated() -> None:
    assert half_crossing([10, 20, 30], kept(1.0, 0.8, 0.3)).level == pytest.approx(26)
    assert half_crossing([10, 20, 30], kept(1.0, 0.5, 0.3)).level == pytest.approx(20)
    assert half_crossing([10, 20, 30], kept(0.7, 0.4, 0.6)).level == pytest.approx(
        10 + 10 * 2 / 3
    )  # the first


def test_half_level_below_the_first_is_taken_from_all_being_kept_without_noise() -> None:
    assert half_crossing([10, 20], kept(0.25, 0.0)).level == pytest.approx(10 * 0.5 / 0.75)


def test_half_level_that_is_never_reached() -> None:
    found = half_crossing([10, 20], kept(1.0, 0.9))
    assert (found.level, found.low, found.high, found.not_reached) == (None, None, None, 1.0)
    close = half_crossing([10, 20], kept(1.0, 0.52))
    assert close.level is None
    assert close.high is None
    assert close.low is not None
    assert 18 < close.low <= 20
    # a resample of 100 is not at or below a half with the chance of 51 or more from B(100, 0.52)
    chance = sum(math.comb(100, i) * 0.52**i * 0.48 ** (100 - i) for i in range(51, 101))
    assert close.not_reached == pytest.approx(chance, abs=0.05)


def test_interval_is_that_of_a_share() -> None:
    # Kept at 10 always, at 30 never, at 20 with the share p > 1/2: t* = 20 + 10 (p - 1/2) / p
    found = half_crossing([10, 20, 30], kept(1.0, 0.8, 0.0, queries=400))
    error = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    ends = [20 + 10 * (p - 0.5) / p for p in (0.8 - error, 0.8 + error)]
    assert found.low == pytest.approx(ends[0], abs=0.08)
    assert found.high == pytest.approx(ends[1], abs=0.08)
    assert found.not_reached == 0


def test_interval_is_the_same_again_and_tells_nothing_of_equal_queries() -> None:
    mixed = kept(1.0, 0.6, 0.3)
    assert half_crossing([1, 2, 3], mixed) == half_crossing([1, 2, 3], mixed)
    sure = half_crossing([1, 2], kept(1.0, 0.0))
    assert (sure.low, sure.level, sure.high) == (1.5, 1.5, 1.5)


def test_crossing_a_row() -> None:
    shares = torch.tensor([[0.9, 0.1], [0.9, 0.8], [0.5, 0.1]], dtype=torch.float64)
    assert crossings([4, 8], shares).tolist() == [6.0, math.inf, 4.0]


def test_half_way_to_chance_from_the_first_level() -> None:
    shares = torch.tensor([[0.9, 0.7, 0.3, 0.1], [0.5, 0.3, 0.1, 0.1]], dtype=torch.float64)
    # to 0.1: at 0.5 and 0.3
    assert crossings([10, 20, 30, 40], shares, chance=0.1).tolist() == pytest.approx([25, 20])
    nothing = torch.tensor([[0.1, 0.05], [0.05, 0.2]], dtype=torch.float64)
    assert crossings([10, 20], nothing, chance=0.1).tolist() == [math.inf] * 2
    assert crossings([10], shares[:, :1], chance=0.1).tolist() == [math.inf] * 2
    measured = half_crossing([10, 20, 30], kept(0.8, 0.6, 0.2, queries=400), chance=0.2)
    assert measured.level == pytest.approx(22.5)
    assert measured.low is not None
    assert measured.high is not None
    assert 20 < measured.low < 22.5 < measured.high < 25


@pytest.mark.parametrize("levels", [[10], [20, 10], [0, 10], [10, 10]])
def test_refuses_levels_that_do_not_fit(levels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"matched must be|levels must rise"):
        half_crossing(levels, kept(1.0, 0.5))
