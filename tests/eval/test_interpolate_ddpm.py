"""Paths through noise, for Gaussian data whose flow is known, read from the picture itself."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image
from torch import Tensor, nn

from genssl.config import DDPMConfig, VAEConfig
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.interpolate import _clipped, interpolate_through_noise, spherical_path
from genssl.eval.result import EvalResult
from genssl.figures import PADDING
from genssl.models.build import build
from genssl.models.ddpm import DDPM
from genssl.models.diffusion import (
    NoiseSchedule,
    extract,
    linear_schedule,
    predict_x_start,
    zero_terminal_snr,
)
from genssl.models.method import Method
from genssl.pixels import to_bytes, to_model
from genssl.runtime import generator

from ..pictures import native_grid

SIDE, STD = 8, 0.3


class Gaussian(nn.Module):
    """The best epsilon for images N(0, STD^2)."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.schedule = schedule
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.batches.append(len(x))
        noise = extract(self.schedule.sqrt_one_minus_alphas_cumprod, t, x)
        return noise * x / (extract(self.schedule.alphas_cumprod, t, x) * STD**2 + noise.square())


def ddpm(timesteps: int = 200) -> DDPM:
    schedule = linear_schedule(timesteps, scaled=True)
    network: Any = Gaussian(schedule)  # as a UNet
    method = DDPM(schedule, network, image_size=SIDE)
    method.config = DDPMConfig(image_size=SIDE, timesteps=timesteps, features_t=0)
    return method


def split(n: int = 6, size: int = SIDE) -> Split:
    x = STD * torch.randn(n, 3, size, size, generator=generator(0, "test"))
    return Split(to_bytes(x), None, (), "noise", "test", "0")


def run(method: Method, data: Split, **changes: Any) -> EvalResult:
    settings: dict[str, Any] = {
        "rows": 3, "steps": 5, "seed": 0, "batch_size": 64, "t_prime": None,
        "noise_method": "ddim", "nfe": 50, "tick": lambda *_: None,
    } | changes  # fmt: skip
    return interpolate_through_noise(method, data, **settings)


def cells(outcome: EvalResult, columns: int) -> Tensor:
    """The images of the picture, in the model's range: (rows, columns, 3, H, W)."""
    picture = outcome.figures["interpolations"]
    assert isinstance(picture, Image)
    count = int(outcome.values["rows"])
    pixels = torch.from_numpy(np.array(native_grid(picture, count, columns, SIDE)))[PADDING:, PADDING:]
    pitch = SIDE + PADDING
    rows = pixels.unfold(0, SIDE, pitch).unfold(1, SIDE, pitch)  # (rows, columns, 3, H, W)
    assert rows.shape[:2] == (count, columns)
    return to_model(rows)


def test_deterministic_paths_are_great_circles_of_gaussian_data() -> None:
    # The flow of such data is one factor, so that the path of the images is that of their noise
    data = split()
    outcome = run(ddpm(), data, nfe=200)
    shown, x = cells(outcome, 7), to_model(data.images)
    assert torch.equal(shown[:, 0], x[0::2])
    assert torch.equal(shown[:, -1], x[1::2])
    assert (shown[:, [1, -2]] - shown[:, [0, -1]]).square().mean().sqrt() < 0.015
    assert outcome.values["round_trip_rmse"] < 0.015  # of 0.3
    circle = spherical_path(shown[:, 1].flatten(1), shown[:, -2].flatten(1), 5).transpose(0, 1)
    assert (shown[:, 1:-1].flatten(2) - circle).abs().max() < 1.5 / 128
    assert outcome.values["largest_to_mean_step"] == pytest.approx(1.0, abs=0.05)  # arcs of equal length


def test_a_great_circle_turns_evenly_and_its_length_changes_linearly() -> None:
    z_1, z_2 = torch.eye(4, dtype=torch.float64)[None, 0], 3 * torch.eye(4, dtype=torch.float64)[None, 1]
    angles = math.pi / 8 * torch.arange(5, dtype=torch.float64).view(5, 1, 1)
    lengths = torch.linspace(1, 3, 5, dtype=torch.float64).view(5, 1, 1)
    expected = lengths * (angles.cos() * z_1 + angles.sin() * z_2 / 3)
    torch.testing.assert_close(spherical_path(z_1, z_2, 5), expected)


def test_evenness_is_that_of_the_picture() -> None:
    data = split()
    faint = to_bytes(to_model(data.images[0::2]) / 5)  # arcs grow with the length of what turns
    data.images[0::2] = faint
    outcome = run(ddpm(), data)
    path = cells(outcome, 7)[:, 1:-1]
    step = path.diff(dim=1).square().flatten(2).mean(2).sqrt()  # (3, 4)
    assert outcome.values["mean_step_rmse"] == pytest.approx(float(step.mean()), rel=0.02)
    largest = float((step.amax(1) / step.mean(1)).mean())
    assert outcome.values["largest_to_mean_step"] == pytest.approx(largest, rel=0.02)
    assert largest > 1.2


def test_round_trips_get_better_with_nfe() -> None:
    method = ddpm()
    errors = [run(method, split(), nfe=nfe).values["round_trip_rmse"] for nfe in (10, 40, 160)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_values_say_what_was_done() -> None:
    method, told = ddpm(), []
    network: Any = method.network
    outcome = run(method, split(), rows=2, steps=3, batch_size=4, nfe=10, tick=lambda *now: told.append(now))
    assert outcome.values["nfe"] == 10
    assert network.batches == [4] * 20 + [2] * 10  # 4 ends, then 6 points
    assert told == sorted(told)
    assert told[-1] == (10, 10)
    network.batches.clear()
    outcome = run(method, split(), rows=2, steps=3, noise_method="noise", t_prime=30)
    assert outcome.values["nfe"] == 30
    assert network.batches == [6] * 30
    assert run(method, split(), rows=1, steps=2, noise_method="noise").values["t_prime"] == 100
    assert run(method, split(), rows=1, steps=2).values["t_prime"] == 200


def test_a_little_noise_mixes_the_images_themselves() -> None:
    data = split()
    shown, x = cells(run(ddpm(), data, noise_method="noise", t_prime=1), 7), to_model(data.images)
    share = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1)
    line = (1 - share) * x[0::2, None] + share * x[1::2, None]
    noise = math.sqrt(float(linear_schedule(200, scaled=True).betas[0]))
    assert (shown[:, 1:-1] - line).square().mean().sqrt() < 1.2 * noise


def test_all_of_a_row_share_their_noise_and_rows_do_not() -> None:
    image = split(1).images
    data = Split(image.expand(6, -1, -1, -1), None, (), "one", "test", "0")
    outcome = run(ddpm(), data, noise_method="noise", t_prime=100)
    assert outcome.values["mean_step_rmse"] < 1e-5
    assert outcome.values["round_trip_rmse"] > 0.1  # the original is lost
    shown = cells(outcome, 7)
    assert (shown[0, 1] - shown[1, 1]).abs().max() > 0.1


@pytest.mark.parametrize("noise_method", ["ddim", "noise"])
def test_a_path_depends_on_its_seed_and_row_alone(noise_method: str) -> None:
    method, settings = ddpm(), {"noise_method": noise_method, "t_prime": 60, "nfe": 10}
    whole = cells(run(method, split(), **settings), 7)
    for batch_size in (1, 7):
        again = cells(run(method, split(), batch_size=batch_size, **settings), 7)
        assert (again - whole).abs().max() < 1.01 / 128  # a byte, at most, where rounding tips it
    assert (cells(run(method, split(), rows=2, **settings), 7) - whole[:2]).abs().max() < 1.01 / 128
    other = cells(run(method, split(), seed=1, **settings), 7)
    assert torch.equal(other, whole) == (noise_method == "ddim")


def test_what_the_network_finds_out_of_range_is_clipped() -> None:
    method = ddpm()
    t = torch.tensor([0, 20, 199])
    x = 2 * torch.randn(3, 3, SIDE, SIDE, generator=generator(1, "test"))
    x_start = predict_x_start(method.schedule, x, t, method.network(x, t))
    assert x_start.abs().max() > 1.5
    torch.testing.assert_close(_clipped(method)(x, t), x_start.clamp(-1, 1), rtol=0, atol=2e-5)


class Mean(nn.Module):
    """Predicts v of the mean image: x_0 = 0 whatever it sees, so that v = alpha epsilon = alpha x / sigma."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        ratio = self.schedule.sqrt_alphas_cumprod / self.schedule.sqrt_one_minus_alphas_cumprod
        return extract(ratio, t, x) * x


def test_paths_through_noise_without_any_signal_are_images() -> None:
    schedule = zero_terminal_snr(linear_schedule(200, scaled=True))
    network: Any = Mean(schedule)
    method = DDPM(schedule, network, image_size=SIDE, prediction="v")
    method.config = DDPMConfig(image_size=SIDE, timesteps=200, features_t=0, prediction="v")
    values = run(method, split()).values
    assert all(math.isfinite(values[name]) for name in ("round_trip_rmse", "mean_step_rmse"))
    # all decode to the mean image, up to the noise left at t = 0
    assert values["round_trip_rmse"] == pytest.approx(STD, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "at least 1 row"),
        ({"steps": 1}, "2 steps"),
        ({"rows": 4}, "need 8 images"),
        ({"t_prime": 0}, "from 1 to 200"),
        ({"t_prime": 201, "noise_method": "noise"}, "from 1 to 200"),
        ({"nfe": 0}, "from 1 to 200"),
        ({"nfe": 51, "t_prime": 50}, "from 1 to 50"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(ddpm(), split(), **changes)


def test_other_methods_and_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="needs a ddpm"):
        run(build(VAEConfig(width=4)), split(size=32))
    with pytest.raises(UserError, match="16x16"):
        run(ddpm(), split(size=16))
