import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from genssl.metrics import linalg
from genssl.metrics.linalg import mean_and_covariance, principal_components
from genssl.runtime import generator


def cloud(n: int = 100, d: int = 6) -> Tensor:
    return torch.randn(n, d, generator=generator(0, "test")) * torch.arange(1, d + 1) + 50


def test_moments_agree_with_numpy_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "ROWS", 7)
    x = cloud()
    mean, covariance = mean_and_covariance(x)
    assert mean.tolist() == pytest.approx(x.double().numpy().mean(0))
    np.testing.assert_allclose(covariance, np.cov(x.double().numpy().T, bias=True), rtol=1e-12)


@pytest.mark.parametrize("shape", [(100, 6), (5, 6)])
def test_agrees_with_scikit_learn(shape: tuple[int, int]) -> None:
    x = cloud(*shape)
    peer = PCA(2, svd_solver="full").fit(x.double().numpy())
    points, shares = principal_components(x, 2)
    assert shares.tolist() == pytest.approx(peer.explained_variance_ratio_.tolist())
    np.testing.assert_allclose(points.numpy(), peer.transform(x.double().numpy()), rtol=1e-5, atol=1e-5)


def test_place_scale_and_order_change_nothing_else() -> None:
    x = cloud()
    points, shares = principal_components(x)
    moved, same = principal_components(3 * x.flip(0) + 7)
    torch.testing.assert_close(moved, 3 * points.flip(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(same, shares)


def test_a_rotated_line_is_one_component() -> None:
    line = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([3.0, -4.0])
    points, shares = principal_components(line, 2)
    assert shares.tolist() == pytest.approx([1, 0])
    assert points[:, 0].tolist() == pytest.approx(
        (-5 * torch.linspace(-1, 1, 9)).tolist()
    )  # -4 is the largest


def test_fewer_dimensions_than_components_and_nothing_that_varies() -> None:
    points, shares = principal_components(cloud(10, 1), 2)
    assert points.shape == (10, 2)
    assert shares.tolist() == [1, 0]
    points, shares = principal_components(torch.full((4, 3), 2.0))
    assert (float(points.abs().max()), float(shares.sum())) == (0, 0)
