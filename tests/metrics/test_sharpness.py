import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, laplace
from scipy.spatial.distance import pdist

from genssl.metrics import sharpness as module
from genssl.metrics.sharpness import diversity, sharpness
from genssl.runtime import generator


def pictures(n: int, height: int = 9, width: int = 12) -> torch.Tensor:
    return torch.randint(256, (n, 3, height, width), generator=generator(0, "test"), dtype=torch.uint8)


def test_sharpness_agrees_with_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 4)
    images = pictures(10)
    gray = np.tensordot(images.double().numpy(), np.array([0.299, 0.587, 0.114]), (1, 0))
    expected = [laplace(image)[1:-1, 1:-1].var() for image in gray]
    torch.testing.assert_close(sharpness(images).double(), torch.tensor(expected), rtol=1e-5, atol=0)


def test_sharpness_in_closed_form() -> None:
    # One bright pixel in 5 x 5: of the 9 inner pixels one has -4 v and four have v, which sum to 0
    image = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    image[:, :, 2, 2] = 90
    torch.testing.assert_close(sharpness(image), torch.tensor([20 / 9 * 90.0**2]))


def test_ramps_are_not_sharp_and_blur_takes_sharpness_away() -> None:
    ramp = torch.arange(8, dtype=torch.uint8).expand(2, 3, 8, 8) * 20
    assert sharpness(ramp).max() < 1e-6
    images = pictures(1, 16, 16)
    blurred = [gaussian_filter(images.double().numpy(), (0, 0, s, s)).round() for s in (0.5, 1, 2)]
    values = [float(sharpness(torch.from_numpy(each).to(torch.uint8))) for each in (images.numpy(), *blurred)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.01 * values[0]


def test_sharpness_does_not_mind_mirrors_and_brightness() -> None:
    images = (pictures(5) // 2).to(torch.uint8)
    expected = sharpness(images)
    torch.testing.assert_close(sharpness(images.flip(3)), expected)
    torch.testing.assert_close(sharpness(images.flip(2).transpose(2, 3)), expected)
    torch.testing.assert_close(sharpness(images + 100), expected)
    torch.testing.assert_close(sharpness(2 * images), 4 * expected)


def test_variety_agrees_with_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 6, generator=generator(0, "test")) + 100
    expected = pdist(x.double().numpy()).mean()
    assert diversity(x) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(module, "ROWS", 7)
    assert diversity(x) == pytest.approx(expected, rel=1e-9)
    assert diversity(3 * x) == pytest.approx(3 * diversity(x), rel=1e-6)


def test_variety_of_images_all_alike_is_zero() -> None:
    assert diversity(torch.full((50, 30), 7.3)) < 1e-6  # 1e-8 of the norms, which is what float64 leaves
    assert diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == 5


@pytest.mark.parametrize("shape", [(2, 2, 9, 9), (2, 3, 2, 9), (3, 9, 9)])
def test_refuses_what_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        sharpness(torch.zeros(shape, dtype=torch.uint8))


def test_refuses_what_has_no_pairs() -> None:
    for x in (torch.zeros(1, 4), torch.zeros(4)):
        with pytest.raises(ValueError, match="at least two rows"):
            diversity(x)
