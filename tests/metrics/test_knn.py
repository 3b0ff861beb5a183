import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

from genssl.metrics import knn
from genssl.metrics.knn import distances, knn_predict, nearest, top
from genssl.runtime import generator


def blobs(n: int, counter: int = 0, dimensions: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Overlapping classes: features (n, D) and labels (n,)."""
    draw = generator(0, "test", counter)
    centers = torch.randn(classes, dimensions, generator=generator(0, "test", 99))
    labels = torch.randint(classes, (n,), generator=draw)
    return centers[labels] + 1.5 * torch.randn(n, dimensions, generator=draw), labels


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "QUERIES", 7)
    monkeypatch.setattr(knn, "BANK", 130)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("k", [1, 5, 200, 1000])
def test_agrees_with_scikit_learn(k: int) -> None:
    bank, labels = blobs(1000)
    queries, _ = blobs(50, 1)
    peer = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp(10 * (1 - distance)),
    ).fit(bank.double().numpy(), labels.numpy())
    expected = torch.from_numpy(peer.predict(queries.double().numpy()))
    assert torch.equal(knn_predict(bank, labels, queries, 5, k), expected)


def test_weights_decide_where_votes_are_split() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    labels = torch.tensor([2, 0, 0])
    query = torch.tensor([[5.0, 0.0]])
    # exp(1 / T) against 2 exp(0.6 / T): equal at T = 0.4 / ln 2 = 0.577
    assert knn_predict(bank, labels, query, 3, k=3, temperature=0.57).tolist() == [2]
    assert knn_predict(bank, labels, query, 3, k=3, temperature=0.58).tolist() == [0]
    assert knn_predict(bank, labels, query, 3, k=3, temperature=1e-4).tolist() == [2]  # and nothing overflows


def test_rotation_and_scale_change_nothing() -> None:
    bank, labels = blobs(600)
    queries, _ = blobs(40, 1)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator(1, "test"))).Q
    scale = torch.linspace(0.1, 30, 40)[:, None]
    expected = knn_predict(bank, labels, queries, 5, 20)
    assert torch.equal(knn_predict(bank @ rotation, labels, queries @ rotation * scale, 5, 20), expected)
    assert torch.equal(knn_predict(100 * bank, labels, queries, 5, 20), expected)


def test_top_finds_the_largest_in_groups_and_in_the_rest() -> None:
    values = torch.randn(6, 8 * 40 + 3, generator=generator(0, "test"))
    values[0, -3:] = 9.0  # beyond the last whole group
    values[1, ::40] = 9.0  # a whole group
    found, columns = top(values, 11)
    torch.testing.assert_close(found.sort(1).values, values.sort(1).values[:, -11:])
    torch.testing.assert_close(values.gather(1, columns), found)


@pytest.mark.usefixtures("_small_chunks")
def test_nearest_agrees_with_brute_force() -> None:
    bank, _ = blobs(500)
    queries, _ = blobs(30, 1)
    expected, places = NearestNeighbors(n_neighbors=1).fit(bank.numpy()).kneighbors(queries.numpy())
    distance, index = nearest(bank, queries)
    assert index.tolist() == places[:, 0].tolist()
    torch.testing.assert_close(distance.double(), torch.from_numpy(expected[:, 0]).double())


def test_nearest_finds_itself_far_from_the_origin() -> None:
    bank, _ = blobs(300)
    far = 0.1 * bank + 1000  # squares of 1e7, which float32 holds to about 1: more than the distances
    distance, index = nearest(far, far[:20])
    assert index.tolist() == list(range(20))
    assert distance.max() == 0


def test_nearest_of_bytes_and_half_precision() -> None:
    bank = torch.randint(256, (200, 30), generator=generator(0, "test"), dtype=torch.uint8)
    queries = bank[50:60].float() + 0.4
    expected = torch.full((10,), 0.4 * 30**0.5)
    for kind in (torch.uint8, torch.float16):
        distance, index = nearest(bank.to(kind), queries)
        assert index.tolist() == list(range(50, 60))
        torch.testing.assert_close(distance, expected, rtol=1e-4, atol=0)  # 255.4 itself is rounded
    assert torch.equal(distances(bank, queries, index), distance)


def test_full_precision_under_autocast() -> None:
    bank, labels = blobs(400)
    queries, _ = blobs(100, 1)
    expected = knn_predict(bank, labels, queries, 5, 3)
    found = nearest(bank, queries)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knn_predict(bank, labels, queries, 5, 3), expected)
        assert torch.equal(nearest(bank, queries)[1], found)


def test_no_query_has_no_class() -> None:
    bank, labels = blobs(20)
    assert knn_predict(bank, labels, bank[:0], 5, 3).shape == (0,)
    assert [part.shape for part in nearest(bank, bank[:0])] == [(0,), (0,)]


@pytest.mark.parametrize("k", [0, 21])
def test_refuses_a_k_that_the_bank_has_not(k: int) -> None:
    bank, labels = blobs(20)
    with pytest.raises(ValueError, match="k must be from 1 to the size of the bank, 20"):
        knn_predict(bank, labels, bank, 5, k)


def test_refuses_shapes_that_do_not_fit() -> None:
    bank, labels = blobs(20)
    with pytest.raises(ValueError, match="19 labels for 20 features"):
        knn_predict(bank, labels[1:], bank, 5, 3)
    with pytest.raises(ValueError, match="temperature 0"):
        knn_predict(bank, labels, bank, 5, 3, temperature=0)
    for other in (bank[:, 1:], bank[0]):
        with pytest.raises(ValueError, match="features must be"):
            nearest(bank, other)
    with pytest.raises(ValueError, match="features must be"):
        nearest(bank[:0], bank)
