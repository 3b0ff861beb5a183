import pytest
import torch

from genssl.data.synthetic import render
from genssl.data.synthetic.rng import BatchRNG


def rng(count: int) -> BatchRNG:
    return BatchRNG(count, torch.Generator().manual_seed(0))


def test_the_cosine_transform_is_orthonormal() -> None:
    cosines = render._cosines().double()
    assert torch.allclose(cosines @ cosines.T, torch.eye(8).double(), atol=1e-6)


@pytest.mark.parametrize("size", [32, 27])
def test_compression_that_rounds_nothing_changes_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.rand(3, 3, size, size)
    compressed = render._compress(picture, rng(3))
    assert compressed.shape == picture.shape
    assert 1e-3 < (compressed - picture).square().mean().sqrt() < 0.1
    monkeypatch.setattr(BatchRNG, "lognormal", lambda self, *_: torch.full((self.count, 1), 1e-6))
    assert torch.allclose(render._compress(picture, rng(3)), picture, atol=1e-4)


def test_enlarging_keeps_a_ramp_and_full_resolution_is_the_identity() -> None:
    """Keys' kernel reproduces straight lines, away from the border."""
    resolution = torch.tensor([16.0, 20.0, 32.0])
    enlarge = render._enlargement(32, resolution)
    assert torch.allclose(enlarge.sum(-1), torch.ones(3, 1, 32), atol=1e-5)
    assert torch.allclose(enlarge[2, 0], torch.eye(32), atol=1e-6)
    pixel = torch.arange(32) + 0.5
    for row, count in zip(enlarge[:, 0], resolution, strict=True):
        ramp = (torch.arange(32) + 0.5) * 32 / count
        assert torch.allclose((row @ ramp)[6:-6], pixel[6:-6], atol=1e-4)


def test_a_lens_keeps_a_flat_scene_flat() -> None:
    n = 50
    lens = render._lens(32, torch.full((n,), 20.0), torch.full((n,), 1.0), torch.full((n,), 0.5), rng(n))
    assert lens.shape == (n, 3, 32, 32)
    assert torch.allclose(lens.sum(-1), torch.ones(n, 3, 32), atol=1e-5)


def test_a_lens_looks_where_its_sensor_is() -> None:
    """The center of mass of an inner pixel's weights is its place in the scene; red and blue move apart."""
    n, resolution = 200, 16
    place = (torch.arange(resolution) + 0.5) * 32 / resolution
    ones = torch.ones(n)
    lens = render._lens(32, resolution * ones, ones, 0 * ones, rng(n))
    mass = (lens @ (torch.arange(32) + 0.5))[:, :, 4:-4]
    inner = place[4:12]
    assert torch.allclose(mass[:, 1, :8], inner.expand(n, -1), atol=1e-2)
    shift = mass[:, 0, :8] - inner
    assert torch.allclose(shift, inner - mass[:, 2, :8], atol=1e-2)
    assert 0.1 < shift.std() < 0.25


def test_a_photograph_of_a_gray_card_is_gray_and_a_little_noisy() -> None:
    n = 100
    photographs = render.photograph(torch.full((n, 3, 32, 32), 0.5), rng(n)).float()
    assert photographs.shape == (n, 3, 32, 32)
    assert abs(photographs.mean() - 128) < 5 * 0.04 * 256 / n**0.5  # brightness: sigma 0.04 an image
    assert 0.3 < photographs.std((2, 3)).median() < 3
