import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from genssl.metrics import fidelity, knn, memorization
from genssl.metrics.fidelity import authenticity, frechet_distance, kernel_distance, prdc, squared_mmd
from genssl.metrics.memorization import find_nearest_training, leave_one_out
from genssl.runtime import generator


def cloud(n: int, d: int, counter: int = 0, spread: float = 1.0) -> Tensor:
    """Correlated features (n, d), away from the origin; every counter has a covariance of its own."""
    draw = generator(0, "test", counter)
    mixing = torch.randn(d, d, generator=draw) / d**0.5
    center = torch.randn(d, generator=draw)
    return (spread * torch.randn(n, d, generator=draw)).matmul(mixing) + center


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "ROWS", 7)
    monkeypatch.setattr(fidelity, "QUERIES", 11)
    monkeypatch.setattr(knn, "BANK", 13)
    for module in (knn, memorization):
        monkeypatch.setattr(module, "QUERIES", 5)


def rotation(d: int) -> Tensor:
    q: Tensor = torch.linalg.qr(torch.randn(d, d, generator=generator(1, "test"), dtype=torch.float64)).Q
    return q


# The Frechet distance


def peer_frechet(x: Tensor, y: Tensor) -> float:
    """As the formula stands, with SciPy's root of a general matrix."""
    a, b = x.double().numpy(), y.double().numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    between = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(between + np.trace(s) + np.trace(t) - 2 * np.trace(root).real)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 200, 3), (300, 150, 24), (100, 400, 40), (41, 43, 40)])
def test_frechet_distance_agrees_with_scipy(n: int, m: int, d: int) -> None:
    x, y = cloud(n, d), cloud(m, d, 1)
    assert frechet_distance(x, y) == pytest.approx(peer_frechet(x, y), rel=1e-9)


@pytest.mark.parametrize(
    ("n", "m", "d"), [(20, 30, 64), (2, 2, 5), (20, 500, 64), (500, 20, 64), (64, 65, 64)]
)
def test_frechet_distance_of_fewer_samples_than_dimensions(n: int, m: int, d: int) -> None:
    # SciPy's general root loses half the digits where the product is singular: the tolerance is its own
    x, y = cloud(n, d), cloud(m, d, 1)
    assert frechet_distance(x, y) == pytest.approx(peer_frechet(x, y), rel=1e-5)


def test_frechet_distance_in_closed_form() -> None:
    # Rows +-a_i e_i: means 0 and covariance diag(a_i^2 2 / (2 d - 1)) exactly; diagonal ones commute
    a, b, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.1, 0.5]), torch.tensor([0.0, -4.0, 1.0])
    x = torch.cat([a.diag(), -a.diag()])
    y = torch.cat([b.diag(), -b.diag()]) + shift
    expected = 17 + float((a - b).square().sum()) * 2 / 5
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)  # 0.1 is a float32


@pytest.mark.parametrize(("n", "d"), [(200, 12), (10, 40), (40, 40)])
def test_frechet_distance_to_itself_is_zero(n: int, d: int) -> None:
    x = cloud(n, d)
    x[:, : d // 3] = 0  # dead dimensions
    assert frechet_distance(x, x) <= 1e-10 * float(x.double().var(0).sum())
    assert frechet_distance(x, x[torch.randperm(n, generator=generator(0, "test"))]) <= 1e-10


@pytest.mark.parametrize(("n", "d"), [(100, 12), (10, 30)])
def test_frechet_distance_turns_moves_and_scales_with_the_features(n: int, d: int) -> None:
    x, y = cloud(n, d).double(), cloud(2 * n, d, 1).double()
    expected = frechet_distance(x, y)
    turn = rotation(d)
    assert frechet_distance(x @ turn + 5, y @ turn + 5) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * d, rel=1e-9)


# The kernel distance


def brute_mmd(x: Tensor, y: Tensor) -> float:
    """Every pair by itself."""
    a, b = x.double().tolist(), y.double().tolist()

    def k(p: list[float], q: list[float]) -> float:
        return (sum(s * t for s, t in zip(p, q, strict=True)) / len(p) + 1) ** 3

    n, m = len(a), len(b)
    own = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(k(p, q) for p in a for q in b) / (n * m)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("n", "m", "d"), [(20, 31, 5), (2, 9, 40), (15, 14, 1)])
def test_squared_mmd_agrees_with_brute_force(n: int, m: int, d: int) -> None:
    x, y = cloud(n, d), cloud(m, d, 1)
    assert squared_mmd(x, y) == pytest.approx(brute_mmd(x, y), rel=1e-9)
    mean, deviation = kernel_distance(x, y, subsets=3)
    assert mean == pytest.approx(brute_mmd(x, y), rel=1e-9)
    assert deviation == pytest.approx(0)


def test_kernel_distance_is_unbiased() -> None:
    # 200 pairs of 12 from one distribution: the mean is 0 within four of its standard errors, and the biased
    # estimate, which counts a row's pair with itself, is far outside
    values = [squared_mmd(cloud(24, 6)[:12], cloud(24, 6)[12:])]
    draw = generator(3, "test")
    for _ in range(200):
        both = torch.randn(24, 6, generator=draw)
        values.append(squared_mmd(both[:12], both[12:]))
    found = torch.tensor(values[1:])
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean())) < 4 * error
    assert (found < 0).any()
    # E k(x, x) - E k(x, x') is above E |x|^2 / d = 1, over 12 in each of the two sets
    assert 4 * error < 2 / 12


def test_kernel_distance_over_subsets() -> None:
    x, y = cloud(60, 5), cloud(50, 5, 1)
    mean, deviation = kernel_distance(x, y, subsets=40, size=20, seed=1)
    found = []
    for place in range(40):
        draw = generator(1, "eval", place)
        rows, others = (torch.randperm(n, generator=draw)[:20] for n in (60, 50))
        found.append(brute_mmd(x[rows], y[others]))
    assert mean == pytest.approx(np.mean(found), rel=1e-9)
    assert deviation == pytest.approx(np.std(found), rel=1e-9)
    assert kernel_distance(x, y, 40, 20, seed=1) == (mean, deviation)
    assert kernel_distance(x, y, 40, 20, seed=2)[0] != mean
    assert abs(mean - squared_mmd(x, y)) < 4 * deviation / 40**0.5


# Precision, recall, density, coverage


def brute_prdc(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    """The definitions, a pair at a time."""
    a, b = real.double().numpy(), fake.double().numpy()
    across = cdist(a, b)
    radius = [np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(cdist(a, a))]
    fake_radius = [np.sort(np.delete(row, j))[k - 1] for j, row in enumerate(cdist(b, b))]
    n, m = across.shape
    precision = np.mean([any(across[i, j] <= radius[i] for i in range(n)) for j in range(m)])
    recall = np.mean([any(across[i, j] <= fake_radius[j] for j in range(m)) for i in range(n)])
    density = sum(across[i, j] <= radius[i] for i in range(n) for j in range(m)) / (k * m)
    coverage = np.mean([any(across[i, j] <= radius[i] for j in range(m)) for i in range(n)])
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("n", "m", "k"), [(60, 45, 1), (45, 60, 3), (30, 30, 29), (150, 20, 5)])
def test_prdc_agrees_with_the_definitions(n: int, m: int, k: int) -> None:
    real, fake = cloud(n, 4), cloud(m, 4, 0, 1.3)
    expected = brute_prdc(real, fake, k)
    assert prdc(real, fake, k) == pytest.approx(expected, abs=1e-12)
    if k < 10:
        assert len(set(expected)) >= 3  # they are told apart
        assert 0 < min(expected[:2] + expected[3:]) < max(expected[:2] + expected[3:]) <= 1


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_prdc_of_a_copy(offset: float) -> None:
    # Far from the origin the squares are 1e6 times the distances': float32 has no digit of these left
    real = cloud(70, 6) + offset
    for k in (1, 5):
        assert prdc(real, real.clone(), k) == pytest.approx((1, 1, (k + 1) / k, 1))
        assert prdc(real, real.flip(0), k) == pytest.approx((1, 1, (k + 1) / k, 1))


def test_prdc_of_copies_where_images_repeat() -> None:
    real = cloud(30, 512).repeat_interleave(4, 0)  # every ball of three neighbors has no radius
    assert prdc(real, real[torch.randperm(120, generator=generator(0, "test"))], 3) == pytest.approx(
        (1, 1, 4 / 3, 1)
    )
    near = real + 0.05 * torch.randn(real.shape, generator=generator(1, "test"))
    assert prdc(real, near, 3)[0] == 0


def test_prdc_of_sets_far_apart() -> None:
    assert prdc(cloud(40, 6), cloud(50, 6) + 100, 5) == (0, 0, 0, 0)


def test_prdc_tells_loss_of_variety_from_loss_of_quality() -> None:
    # One of two clusters, twice: all samples are good, half of the images are missed
    cluster, other = torch.randn(100, 4, generator=generator(0, "test")), cloud(100, 4, 7) + 50
    real, fake = torch.cat([cluster, other]), torch.cat([cluster, cluster + 1e-3])
    found = prdc(real, fake, 5)
    assert found.precision == 1
    assert found.recall == 0.5
    assert found.coverage == 0.5
    reverse = prdc(fake, real, 5)
    assert (reverse.precision, reverse.recall) == (found.recall, found.precision)  # one is the other's mirror


def test_prdc_of_real_images_again() -> None:
    # A new point falls into the ball of an image with chance k / N: density 1, within four standard errors
    # of the mean over sets
    found = []
    for place in range(40):
        both = torch.randn(200, 3, generator=generator(5, "test", place))
        found.append(prdc(both[:100], both[100:], 5).density)
    values = torch.tensor(found)
    assert abs(float(values.mean()) - 1) < 4 * float(values.std()) / 40**0.5


def test_chunks_devices_of_memory_and_autocast_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(90, 8), cloud(80, 8, 1, 1.5)

    def everything() -> list[float]:
        return [*prdc(x, y, 4), squared_mmd(x, y), authenticity(x, y), frechet_distance(x, y)]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert everything() == pytest.approx(expected, rel=1e-12)
    for size in (1, 3, 64):
        for module, name in (
            (fidelity, "ROWS"),
            (fidelity, "QUERIES"),
            (knn, "QUERIES"),
            (knn, "BANK"),
            (memorization, "QUERIES"),
        ):
            monkeypatch.setattr(module, name, size)
        assert everything() == pytest.approx(expected, rel=1e-12)


# Authenticity


def brute_authentic(train: Tensor, fake: Tensor) -> list[bool]:
    a, b = train.double().numpy(), fake.double().numpy()
    across, own = cdist(b, a), cdist(a, a)
    nearest = across.argmin(1)
    return [bool(across[j, i] > np.delete(own[i], i).min()) for j, i in enumerate(nearest)]


@pytest.mark.usefixtures("_small_chunks")
def test_authenticity_agrees_with_the_definition() -> None:
    train, fake = cloud(80, 5), cloud(60, 5, 0, 1.1)
    expected = brute_authentic(train, fake)
    found = find_nearest_training(train, fake)
    assert found.authentic.tolist() == expected
    assert authenticity(train, fake) == pytest.approx(np.mean(expected))
    assert 0 < np.mean(expected) < 1
    own = torch.from_numpy(cdist(train.double(), train.double()))
    own.fill_diagonal_(math.inf)
    assert found.neighbor.tolist() == own.argmin(1)[found.index].tolist()
    torch.testing.assert_close(found.spacing.double(), own.amin(1)[found.index], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.closeness, found.distance / found.spacing)


@pytest.mark.usefixtures("_small_chunks")
def test_leaving_one_out_is_searching_without_it() -> None:
    train, rows = cloud(80, 5), torch.tensor([3, 17, 40, 41, 42, 79, 0])
    found = leave_one_out(train, rows)
    for place, row in enumerate(rows.tolist()):
        others = torch.cat([train[:row], train[row + 1 :]])
        expected = find_nearest_training(others, train[row : row + 1])
        assert torch.equal(train[found.index[place]], others[expected.index[0]])
        assert torch.equal(train[found.neighbor[place]], others[expected.neighbor[0]])
        assert found.authentic[place] == brute_authentic(others, train[row : row + 1])[0]
    with pytest.raises(ValueError, match="three training images"):
        leave_one_out(train[:2], rows[:1])


@pytest.mark.usefixtures("_small_chunks")
def test_copies_are_not_authentic_and_far_samples_are() -> None:
    train = cloud(40, 5)
    assert authenticity(train, train[3:20]) == 0
    assert authenticity(train, train[:9] + 1e-3) == 0
    assert authenticity(train, train + 1000) == 1
    doubled = torch.cat([train, train])  # spacing 0, and a copy is still no more than that away
    assert authenticity(doubled, train) == 0
    assert find_nearest_training(doubled, train).closeness.tolist() == [0.0] * 40


# What is refused


@pytest.mark.parametrize("k", [0, 20, 30])
def test_refuses_a_k_that_a_set_has_not(k: int) -> None:
    with pytest.raises(ValueError, match="k must be from 1 to 19"):
        prdc(cloud(30, 4), cloud(20, 4), k)


def test_refuses_shapes_that_do_not_fit() -> None:
    x = cloud(10, 4)
    for function in (frechet_distance, kernel_distance, squared_mmd, prdc):
        for other in (x[:, 1:], x[0], x[:0]):
            with pytest.raises(ValueError, match="features must be"):
                function(x, other)
    for function in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="at least 2 rows"):
            function(x, x[:1])
    with pytest.raises(ValueError, match="size at least 2"):
        kernel_distance(x, x, size=1)
    with pytest.raises(ValueError, match="subsets must be at least 1"):
        kernel_distance(x, x, subsets=0)
    with pytest.raises(ValueError, match="two training images"):
        authenticity(x[:1], x)
    with pytest.raises(ValueError, match="features must be"):
        authenticity(x, x[:, 1:])
