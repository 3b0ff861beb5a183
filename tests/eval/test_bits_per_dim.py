"""The bound of models whose every term is known, and the ways to sum it."""

import math
from typing import Any, get_args

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from genssl.config import DDPMConfig, FlowConfig, VAEConfig
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.bits_per_dim import Strata, bits_per_dim
from genssl.eval.result import EvalResult
from genssl.models.build import build
from genssl.models.ddpm import DDPM
from genssl.models.diffusion import NoiseSchedule, Prediction, extract, linear_schedule, predict_x_start
from genssl.models.method import Method
from genssl.models.vlb import decoder_std
from genssl.pixels import to_model
from genssl.runtime import generator

OFF = 0.003  # by how much a prediction of x_0 is wrong
BYTE = 100


class Finder(nn.Module):
    """Predicts x_0 + OFF for images of BYTE alone, whatever the noise; `pull` mixes in what it sees.

    In terms of the noise, of v or of the image, as `prediction` says.
    """

    def __init__(self, schedule: NoiseSchedule, pull: float, prediction: Prediction) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.schedule, self.pull, self.prediction = schedule, pull, prediction

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        seen = predict_x_start(self.schedule, x, t, torch.zeros_like(x))
        found = (1 - self.pull) * ((BYTE + 0.5) / 128 - 1 + OFF) + self.pull * seen
        signal = extract(self.schedule.sqrt_alphas_cumprod, t, x)
        std = extract(self.schedule.sqrt_one_minus_alphas_cumprod, t, x)
        epsilon = (x - signal * found) / std
        return {"epsilon": epsilon, "v": signal * epsilon - std * found, "x": found}[self.prediction]


def ddpm(timesteps: int = 100, pull: float = 0.0, prediction: Prediction = "epsilon") -> DDPM:
    schedule = linear_schedule(timesteps, scaled=timesteps > 20)
    network: Any = Finder(schedule, pull, prediction)  # as a UNet
    method = DDPM(schedule, network, image_size=8, prediction=prediction)
    method.config = DDPMConfig(image_size=8, timesteps=timesteps, features_t=0)
    return method


def split(n: int, *, noisy: bool = False, size: int = 8) -> Split:
    images = torch.full((n, 3, size, size), BYTE, dtype=torch.uint8)
    if noisy:
        images = torch.randint(0, 256, images.shape, generator=generator(0, "test"), dtype=torch.uint8)
    return Split(images, None, (), "noise", "test", "0")


def run(method: Method, data: Split, t_samples: int | None = None, **changes: int) -> EvalResult:
    settings: dict[str, Any] = {"seed": 0, "batch_size": 16} | changes
    return bits_per_dim(method, data, t_samples=t_samples, tick=lambda *_: None, **settings)


def known_terms(schedule: NoiseSchedule) -> Tensor:
    """Bits/dim of each denoising step of `Finder`: (SNR_{t-1} - SNR_t) OFF^2 / 2, (T - 1,)."""
    log_kept = torch.tensor(schedule.log_alphas_cumprod, dtype=torch.float64)
    snr = 1 / torch.expm1(-log_kept)
    return 0.5 * (snr[:-1] - snr[1:]) * OFF**2 / math.log(2)


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_every_part_is_what_it_must_be(prediction: Prediction) -> None:
    method = ddpm(prediction=prediction)
    values = run(method, split(3)).values
    terms = known_terms(method.schedule)
    assert values["denoising_bits_per_dim"] == pytest.approx(float(terms.sum()), rel=2e-3)
    edges = [-OFF + side / 256 for side in (-1, 1)]
    lower, upper = stats.norm.cdf(edges, 0, decoder_std(method.schedule))
    assert values["decoder_bits_per_dim"] == pytest.approx(-math.log2(upper - lower), rel=1e-4)
    kept = math.exp(method.schedule.log_alphas_cumprod[-1])
    x_start = float(to_model(torch.tensor(BYTE)))
    prior = 0.5 * (kept * x_start**2 - kept - math.log1p(-kept)) / math.log(2)
    assert values["prior_bits_per_dim"] == pytest.approx(prior, rel=1e-4)
    parts = [values[f"{part}_bits_per_dim"] for part in ("prior", "denoising", "decoder")]
    assert values["bits_per_dim"] == pytest.approx(sum(parts), rel=1e-12)
    assert values["standard_error"] < 1e-5
    counts = [values[name] for name in ("images", "timesteps", "evaluations_per_image")]
    assert counts == [3, 100, 100]


@pytest.mark.parametrize("t_samples", [None, 7])
def test_the_table_by_time_has_its_sums(t_samples: int | None) -> None:
    method = ddpm()
    values = run(method, split(400 if t_samples else 2), t_samples, batch_size=400).values
    table, terms = values["denoising_bits_per_dim_by_t"], known_terms(method.schedule)
    assert list(table)[:2] == ["2-10", "11-20"]
    assert list(table)[9] == "91-100"
    assert sum(table.values()) == pytest.approx(values["denoising_bits_per_dim"])
    if t_samples is None:
        expected = [float(terms[max(first - 1, 0) : first + 9].sum()) for first in range(0, 100, 10)]
        assert list(table.values()) == pytest.approx(expected, rel=5e-3)
    # few times make small tables
    assert list(run(ddpm(4), split(2)).values["denoising_bits_per_dim_by_t"]) == ["2-2", "3-3", "4-4"]


@pytest.mark.parametrize("t_samples", [1, 5, 30])
def test_stratified_times_have_no_bias_and_the_error_they_say(t_samples: int) -> None:
    # The images are equal and their terms not random, so that all of the error comes from drawing times
    method, n = ddpm(), 2000
    values = run(method, split(n), t_samples, batch_size=n).values
    exact = run(method, split(2)).values
    terms, strata = known_terms(method.schedule), Strata.make(100, t_samples)
    runs = terms.split(strata.sizes[1:].tolist())
    error = math.sqrt(sum(float(len(r) ** 2 * r.var(unbiased=False)) for r in runs) / n)
    assert abs(values["bits_per_dim"] - exact["bits_per_dim"]) < 5 * error
    assert values["standard_error"] == pytest.approx(error, rel=0.25)
    assert values["decoder_bits_per_dim"] == pytest.approx(exact["decoder_bits_per_dim"], rel=1e-9)
    assert values["evaluations_per_image"] == t_samples + 1


def test_stratified_times_agree_with_all_of_them_on_noisy_terms() -> None:
    method, data = ddpm(pull=0.3), split(64, noisy=True)
    some, every = run(method, data, 10).values, run(method, data).values
    error = math.hypot(some["standard_error"], every["standard_error"])
    assert 0 < abs(some["bits_per_dim"] - every["bits_per_dim"]) < 5 * error


@pytest.mark.parametrize(
    ("timesteps", "t_samples"), [(1, None), (2, 1), (9, 8), (1000, 20), (1000, 998), (1500, 1)]
)
def test_strata_hold_each_time_once(timesteps: int, t_samples: int | None) -> None:
    strata = Strata.make(timesteps, t_samples)
    assert strata.firsts[0] == 0
    assert strata.sizes[0] == 1
    assert len(strata.sizes) == (timesteps if t_samples is None else t_samples + 1)
    assert (strata.sizes >= 1).all()
    held = [
        t for first, size in zip(strata.firsts, strata.sizes, strict=True) for t in range(first, first + size)
    ]
    assert held == list(range(timesteps))
    ends = strata.draw(torch.tensor([0.0, 1 - 2**-24])[:, None].expand(2, len(strata.sizes)))
    assert torch.equal(ends[0], strata.firsts)
    assert torch.equal(ends[1], strata.firsts + strata.sizes - 1)


@pytest.mark.parametrize("t_samples", [None, 6])
def test_the_batch_size_changes_nothing(t_samples: int | None) -> None:
    method, data = ddpm(20, pull=0.3), split(7, noisy=True)
    whole = run(method, data, t_samples, batch_size=7).values
    for batch_size in (1, 3):
        other = run(method, data, t_samples, batch_size=batch_size).values
        assert other["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-6)
        assert other["standard_error"] == pytest.approx(whole["standard_error"], rel=1e-5)
    assert run(method, data, t_samples, seed=1).values["bits_per_dim"] != whole["bits_per_dim"]


def test_the_standard_error_is_that_of_images() -> None:
    method, data = ddpm(4, pull=0.3), split(6, noisy=True)
    means = [run(method, data.select(torch.arange(k))).values["bits_per_dim"] for k in range(1, 7)]
    sums = torch.tensor(means, dtype=torch.float64) * torch.arange(1, 7)
    bounds = sums.diff(prepend=torch.zeros(1, dtype=torch.float64))  # of each image
    values = run(method, data).values
    assert values["standard_error"] == pytest.approx(float(bounds.std()) / math.sqrt(6), rel=1e-4)
    assert run(method, data.select(torch.tensor([0]))).values["standard_error"] is None


def test_a_network_is_run_whole() -> None:
    method = build(DDPMConfig(image_size=8, timesteps=5, network="tiny", features_t=0)).eval()
    told: list[tuple[int, int]] = []
    outcome = bits_per_dim(
        method, split(5, noisy=True), t_samples=2, seed=0, batch_size=2, variance="large",
        tick=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert math.isfinite(outcome.values["bits_per_dim"])
    assert told == sorted(told)
    assert told[-1] == (5, 5)
    assert outcome.values["variance"] == "large"
    large, posterior = outcome.values, run(method, split(5, noisy=True), 2).values
    assert abs(large["denoising_bits_per_dim"] / posterior["denoising_bits_per_dim"] - 1) > 0.01
    assert len(outcome.figures) == 1


def test_notes_say_what_a_reader_needs() -> None:
    every, some = run(ddpm(), split(2)), run(ddpm(), split(2), 5)
    assert "8 bits/dim" in every.notes[0]
    assert any("6 of 100 times" in note for note in some.notes)
    assert not any("estimated" in note for note in every.notes)
    assert any("prior" in note for note in run(ddpm(10), split(2)).notes)  # betas that are not scaled


def test_what_cannot_be_bounded_is_refused() -> None:
    with pytest.raises(UserError, match="needs a ddpm or a flow, and this is a vae"):
        run(build(VAEConfig(width=4)), split(2, size=32))
    with pytest.raises(UserError, match="8x8"):
        run(ddpm(), split(2, size=16))
    for t_samples in (0, -1, 100):
        with pytest.raises(UserError, match="from 1 to 99"):
            run(ddpm(), split(2), t_samples)


class UniformFlow(Method):
    """Knows that every value in [-1, 1] is as likely as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.config = FlowConfig(image_size=8)
        self.seen: list[Tensor] = []

    def log_likelihood_of_flow(self, x: Tensor, steps: int, generator: Any = None) -> Tensor:
        self.seen.append(x)
        return torch.full((len(x),), -math.log(2) * x[0].numel())


def test_a_flow_of_uniform_density_needs_eight_bits() -> None:
    method, data = UniformFlow(), split(40, noisy=True)
    values = run(method, data).values
    assert values["bits_per_dim"] == pytest.approx(8, abs=1e-6)
    # the place of a value within the bin of its byte is uniform: its mean 1/2, its variance 1/12
    place = torch.cat(method.seen).double().add(1).mul(128) - data.images
    assert ((place > -1e-4) & (place < 1 + 1e-4)).all()
    n = place.numel()
    assert abs(float(place.mean()) - 0.5) < 4 / math.sqrt(12 * n)
    assert float(place.var()) == pytest.approx(1 / 12, rel=0.05)
