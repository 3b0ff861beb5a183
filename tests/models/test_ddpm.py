"""The method: what it logs, what its samples depend on, and that it learns."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from genssl import config as configs
from genssl.config import DDPMConfig
from genssl.errors import UserError
from genssl.models.build import build
from genssl.models.ddpm import DDPM, DETERMINISTIC, thirds
from genssl.models.diffusion import (
    Loss,
    Noise,
    Prediction,
    TimestepSampling,
    Variance,
    Weighting,
    cosine_schedule,
    linear_schedule,
    p_losses,
    probability_of_times,
    q_sample,
)
from genssl.models.samplers import ancestral, ddim
from genssl.models.sampling_times import Spacing
from genssl.models.unet import Layout, UNet
from genssl.runtime import generator, generators, step_noise

SIDE = 8
SAMPLERS: list[dict[str, Any]] = [
    {},
    {"sampler": "ddim", "steps": 5},
    {"sampler": "ddim", "steps": 5, "eta": 1.0},
    {"sampler": "ancestral"},
    {"sampler": "ancestral", "steps": 5, "variance": "large"},
]


def small(timesteps: int = 30) -> DDPM:
    torch.manual_seed(0)
    network = UNet(Layout((16, 32), (1, 1), (False, False)))
    with torch.no_grad():
        network.end.weight.normal_(std=0.1)
    schedule = linear_schedule(timesteps, scaled=True)
    return DDPM(schedule, network, SIDE, features_t=5).eval()


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=generator(0, "test")) * 2 - 1


def test_the_loss_is_the_simplified_objective() -> None:
    method, x = small(), images()
    draws = method.draws(4, generator(0, "method"))
    assert draws["t"].shape == (4,)
    assert draws["noise"].shape == x.shape
    terms = method.loss((x,), draws)
    expected = p_losses(method.network, method.schedule, x, draws["t"], draws["noise"])
    torch.testing.assert_close(terms["loss"], expected)
    method.loss_kind = "mse"
    mse = p_losses(method.network, method.schedule, x, draws["t"], draws["noise"], "mse")
    torch.testing.assert_close(method.loss((x,), draws)["loss"], mse)


@pytest.mark.parametrize("timesteps", [1, 2, 30, 31, 1000])
def test_thirds_cover_every_time_once(timesteps: int) -> None:
    assert [t for first, end in thirds(timesteps) for t in range(first, end)] == list(range(timesteps))


def test_losses_by_noise_level_have_no_bias() -> None:
    # with every time once, a third's images are as many as expected, and the part is their plain mean
    method = small(31)
    x, t = images(31), torch.arange(31)
    noise = torch.randn(x.shape, generator=generator(1, "test"))
    terms = method.loss((x,), {"t": t, "noise": noise})
    names = ("loss_low", "loss_mid", "loss_high")
    for name, (first, end) in zip(names, thirds(31), strict=True):
        rows = slice(first, end)
        part = p_losses(method.network, method.schedule, x[rows], t[rows], noise[rows])
        torch.testing.assert_close(terms[name], part)
        assert not terms[name].requires_grad
    # without images in a third it is zero, not not-a-number
    few = method.loss((x[:2],), {"t": torch.tensor([0, 1]), "noise": noise[:2]})
    assert few["loss_mid"] == few["loss_high"] == 0
    assert few["loss_low"] > 0


@pytest.mark.parametrize("sampling", get_args(TimestepSampling))
def test_the_loss_compiles_into_one_graph(sampling: TimestepSampling) -> None:
    method, x = small(), images()
    method.timestep_sampling = sampling
    draws = method.draws(4, generator(0, "method"))
    compiled = torch.compile(method.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled((x,), draws)["loss"], method.loss((x,), draws)["loss"])


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_the_objective_is_the_one_of_the_config(
    prediction: Prediction, weighting: Weighting, loss: Loss
) -> None:
    method, x = small(), images()
    method.prediction, method.weighting, method.loss_kind = prediction, weighting, loss
    draws = method.draws(4, generator(0, "method"))
    options: dict[str, Any] = {"prediction": prediction, "weighting": weighting}
    expected = p_losses(method.network, method.schedule, x, draws["t"], draws["noise"], loss, **options)
    torch.testing.assert_close(method.loss((x,), draws)["loss"], expected)


def test_times_are_drawn_as_the_config_says_and_losses_by_noise_level_know_it() -> None:
    method, n = small(1000), 4000
    method.timestep_sampling = "logit_normal"
    draws = {name: value[:n] for name, value in method.draws(n, generator(0, "method")).items()}
    # Phi(logit(1/4)) = 0.136 of them are in the first quarter; four standard errors
    share = float((draws["t"] < 250).float().mean())
    assert abs(share - 0.136) < 4 * (0.136 * 0.864 / n) ** 0.5
    few = {name: value[:8] for name, value in draws.items()}
    x = images(8)
    first, end = thirds(1000)[0]
    inside = (few["t"] >= first) & (few["t"] < end)
    assert inside.any()
    part = p_losses(method.network, method.schedule, x[inside], few["t"][inside], few["noise"][inside])
    expected = part * int(inside.sum()) / (8 * probability_of_times(1000, first, end, "logit_normal"))
    torch.testing.assert_close(method.loss((x,), few)["loss_low"], expected)


@torch.no_grad()
def test_options_reach_the_sampler() -> None:
    method = small()
    x = torch.randn(2, 3, SIDE, SIDE, generator=generator(3, "test"))
    common: dict[str, Any] = {"prediction": method.prediction, "clip": True}

    def noise() -> Noise:
        return step_noise(x.shape, generators(0, "sample", range(2)), x.device)

    def found(sampler: Any, **options: Any) -> Tensor:
        return method.denoise(x, None, generators(0, "sample", range(2)), sampler, 5, **options)

    for eta in (0.0, 1.0):
        expected = ddim(method.network, method.schedule, x, 5, None, noise(), eta, **common)
        torch.testing.assert_close(found("ddim", eta=eta), expected)
    variances: tuple[Variance, ...] = ("posterior", "large")
    for variance in variances:
        expected = ancestral(method.network, method.schedule, x, 5, None, noise(), variance, **common)
        torch.testing.assert_close(found("ancestral", variance=variance), expected)
    assert (found("ddim", eta=1.0) - found("ddim", eta=0.0)).abs().max() > 1e-3
    for name, sampler in DETERMINISTIC.items():
        for spacing in get_args(Spacing):
            expected = sampler(method.network, method.schedule, x, 5, spacing=spacing, **common)
            torch.testing.assert_close(found(name, spacing=spacing), expected)
        torch.testing.assert_close(found(name), found(name, spacing="karras"), rtol=0, atol=0)
    torch.testing.assert_close(found("ddim"), found("ddim", spacing="quadratic"), rtol=0, atol=0)
    assert (found("dpm++", spacing="uniform") - found("dpm++")).abs().max() > 1e-3


@pytest.mark.parametrize("options", SAMPLERS)
@torch.no_grad()
def test_a_sample_depends_on_its_own_generator_alone(options: dict[str, Any]) -> None:
    method = small()
    whole = method.sample(7, generators(0, "sample", range(7)), **options)
    assert whole.shape == (7, 3, SIDE, SIDE)
    assert whole.abs().max() <= 1 + 1e-5
    for rows in (range(3, 4), range(2, 5)):
        part = method.sample(len(rows), generators(0, "sample", rows), **options)
        torch.testing.assert_close(part, whole[rows.start : rows.stop], rtol=0, atol=1e-4)
    assert (whole[0] - whole[1]).abs().max() > 0.01


@pytest.mark.parametrize("options", SAMPLERS)
@torch.no_grad()
def test_denoising_from_the_end_is_sampling(options: dict[str, Any]) -> None:
    method = small()
    kept: list[int] = []
    expected = method.sample(2, generator(0, "sample"), **options)
    source = generator(0, "sample")
    x = torch.randn(2, 3, SIDE, SIDE, generator=source)
    found = method.denoise(x, 29, source, **options, callback=lambda t, _: kept.append(t))
    torch.testing.assert_close(found, expected)
    assert len(kept) == options.get("steps", 30 if options else 20)
    assert kept[-1] == -1


@torch.no_grad()
def test_denoising_takes_no_more_steps_than_there_are_times() -> None:
    method, kept = small(), []
    method.denoise(images(), 3, callback=lambda t, _: kept.append(t))
    assert kept == [2, 1, 0, -1]
    with pytest.raises(ValueError, match="from 1 to 4"):
        method.denoise(images(), 3, steps=5)
    with pytest.raises(ValueError, match="from 0 to 29"):
        method.denoise(images(), 30)
    with pytest.raises(ValueError, match="unknown sampler"):
        method.denoise(images(), 3, sampler="euler")  # type: ignore[arg-type]  # no such sampler


def test_features_are_deterministic_and_of_the_chosen_time() -> None:
    method, x = small(), images()
    found = method.features(x)
    assert found.shape == (4, 32)
    assert torch.equal(found, method.features(x))
    t = torch.full((4,), 5)
    kept = method.schedule.alphas_cumprod[5].sqrt()
    torch.testing.assert_close(found, method.network.middle(kept * x, t))
    assert method.previews(x, generators(0, "sample", range(4)))["samples"].shape == x.shape


def test_the_schedule_follows_the_weights_and_stays_out_of_the_checkpoint() -> None:
    method = small()
    assert all(name.startswith("network.") for name in method.state_dict())
    assert not list(method.buffers())
    moved = copy.deepcopy(method).to("meta")
    assert moved.schedule.betas.device.type == "meta"
    assert method.schedule.betas.device.type == "cpu"


def test_it_learns_a_toy_distribution() -> None:
    # all images are one constant: epsilon is then known up to scale at every time
    method = small(100).train()
    x = torch.full((16, 3, SIDE, SIDE), 0.5)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for step in range(60):
        terms = method.loss((x,), method.draws(16, generator(0, "method", step)))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["loss"].detach()))
    assert sum(losses[-10:]) < 0.35 * sum(losses[:10])
    t = torch.full((16,), 40)
    noised = q_sample(method.schedule, x, t, torch.randn(x.shape, generator=generator(1, "test")))
    with torch.no_grad():
        cleaned = method.eval().denoise(noised, 40)
    assert (cleaned - x).abs().mean() < 0.3 * (noised - x).abs().mean()


def test_the_config_builds_its_schedule_and_network() -> None:
    method = build(DDPMConfig(network="tiny", timesteps=100, scale_betas=True, features_t=7))
    assert isinstance(method, DDPM)
    assert method.features_t == 7
    torch.testing.assert_close(method.schedule.betas, linear_schedule(100, scaled=True).betas)
    cosine = build(DDPMConfig(network="tiny", beta_schedule="cosine", loss="mse", image_size=16))
    assert isinstance(cosine, DDPM)
    torch.testing.assert_close(cosine.schedule.betas, cosine_schedule(1000).betas)
    assert (cosine.loss_kind, cosine.shape) == ("mse", (3, 16, 16))


ZERO_TERMINAL = {"zero_terminal_snr": True, "prediction": "v"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 12}, "image_size must be a multiple of 8"),
        ({"timesteps": 0}, "timesteps must be greater than 0"),
        ({"timesteps": 50}, r"features_t must be below timesteps \(50\), not 50"),
        ({"beta_start": 0.03}, "beta_start 0.03 must not exceed beta_end 0.02"),
        ({"beta_end": 1.0}, "beta_end must be less than 1"),
        ({"timesteps": 20, "features_t": 1, "scale_betas": True}, "scale_betas takes beta_end to 1"),
        ({**ZERO_TERMINAL, "beta_end": 0.99}, "something of an image is left"),
        ({**ZERO_TERMINAL, "timesteps": 1, "features_t": 0}, "needs 2 timesteps or more"),
        ({"network": "large"}, "network must be 'tiny', 'compact', 'small' or 'base'"),
    ],
)
def test_wrong_settings_are_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        configs.make("ddpm", changes)
    assert "\n" not in str(caught.value)


def test_a_process_that_does_not_end_in_noise_says_so() -> None:
    small = {"network": "tiny", "data": "synthetic"}
    assert build(DDPMConfig(**small)).remarks() == ()
    (remark,) = build(DDPMConfig(timesteps=500, **small)).remarks()
    assert "alpha-bar 6.4e-03" in remark
    assert build(DDPMConfig(timesteps=500, scale_betas=True, **small)).remarks() == ()
