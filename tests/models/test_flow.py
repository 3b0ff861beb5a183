"""Flow matching on Gaussian data, where the velocity, the flow and the likelihood are known."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from genssl.config import FlowConfig
from genssl.models import unet
from genssl.models.build import build
from genssl.models.flow import Flow, log_likelihood, solve_ode
from genssl.models.unet import Layout
from genssl.runtime import generator, generators

MEAN = torch.linspace(-0.5, 0.5, 8, dtype=torch.float64)
STD = torch.logspace(-1, 0, 8, base=10, dtype=torch.float64)
NOISE = torch.randn(16, 8, generator=generator(0, "test"), dtype=torch.float64)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[epsilon - x_0 | x_t] for x_0 ~ N(MEAN, diag STD^2): both are Gaussian together with x_t."""
    t = t[:, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    off = x - (1 - t) * MEAN
    return t * off / variance - (MEAN + (1 - t) * STD**2 * off / variance)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> FlowConfig:
    monkeypatch.setitem(unet.LAYOUTS, "tiny", Layout((16, 16), (1, 1), (False, False)))
    return FlowConfig(data="synthetic", network="tiny", image_size=16, conditional=True, num_classes=10)


@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_following_the_exact_velocity_gives_the_data(heun: bool, order: int) -> None:
    exact = MEAN + STD * NOISE  # the same quantile of the data
    errors = [float((solve_ode(velocity, NOISE, n, heun=heun) - exact).abs().max()) for n in (50, 100, 200)]
    assert errors[2] < (2e-3 if heun else 0.05)
    for coarse, fine in pairwise(errors):
        # half the step: half the error of a first-order method, a quarter of that of a second-order one
        assert coarse / fine == pytest.approx(2**order, rel=0.25)


def test_there_and_back_again() -> None:
    images = MEAN + STD * NOISE
    noise = solve_ode(velocity, images, 200, to_noise=True)
    torch.testing.assert_close(noise, NOISE, rtol=0, atol=5e-3)
    torch.testing.assert_close(solve_ode(velocity, noise, 200), images, rtol=0, atol=5e-3)


def test_the_likelihood_is_that_of_the_gaussian() -> None:
    images = MEAN + STD * NOISE
    exact = -0.5 * ((NOISE.square() + (2 * math.pi * STD**2).log()).sum(1))
    # the Jacobian is diagonal, so that random signs estimate the divergence without error
    estimate = log_likelihood(velocity, images, 200, generator(1, "test"))
    torch.testing.assert_close(estimate, exact, rtol=0, atol=5e-3)


def test_the_likelihood_of_finely_noised_data_needs_few_steps() -> None:
    """Dequantized images vary by 0.002 in flat places: the field turns fastest just before the image."""
    std = 0.005
    noise = NOISE[:, :1]

    def field(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        variance = (1 - t) ** 2 * std**2 + t**2
        return (t - (1 - t) * std**2) * x / variance

    exact = -0.5 * (noise.square() + math.log(2 * math.pi * std**2)).sum(1)
    estimate = log_likelihood(field, std * noise, 100, generator(1, "test"))
    # equal steps of 1/100 are off by up to 1.4
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.05)


def test_the_divergence_has_no_bias_where_dimensions_mix() -> None:
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator(2, "test"), dtype=torch.float64))

    def turned(x: Tensor, t: Tensor) -> Tensor:
        return velocity(x @ turn, t).matmul(turn.T)

    images = (MEAN + STD * NOISE[:1]) @ turn.T
    exact = -0.5 * ((NOISE[0].square() + (2 * math.pi * STD**2).log()).sum())
    draws = log_likelihood(turned, images.expand(400, 8), 60, generator(1, "test"))
    # four standard errors, and the error of 60 steps
    assert abs(float(draws.mean() - exact)) < 4 * float(draws.std()) / 20 + 0.03
    assert draws.std() > 0.01


def test_the_loss_is_that_of_the_velocity(tiny: FlowConfig) -> None:
    flow = build(tiny)
    draws = flow.draws(6, generator(0, "test")) | {"labels": torch.arange(6)}
    images = torch.rand(6, 3, 16, 16, generator=generator(1, "test"))
    # the untrained network says 0
    expected = (draws["noise"] - images).square().mean()
    torch.testing.assert_close(flow.loss((images,), draws)["loss"], expected)
    assert ((draws["t"] > 0) & (draws["t"] < 1)).all()


def test_the_network_sees_the_straight_path_its_time_and_the_shown_labels(tiny: FlowConfig) -> None:
    flow = build(tiny)
    assert isinstance(flow, Flow)
    seen: list[tuple[Tensor, ...]] = []
    flow.network.register_forward_hook(lambda _, arguments, __: seen.append(arguments))
    draws = flow.draws(40, generator(0, "test")) | {"labels": torch.arange(40) % 10}
    images = torch.rand(40, 3, 16, 16, generator=generator(1, "test"))
    flow.loss((images,), draws)
    x, t, labels = seen[0]
    share = draws["t"].view(-1, 1, 1, 1)
    torch.testing.assert_close(x, (1 - share) * images + share * draws["noise"])
    torch.testing.assert_close(t, 1000 * draws["t"])
    assert torch.equal(labels, torch.where(draws["shows_class"], draws["labels"], 10))
    assert not draws["shows_class"].all()
    level = flow.features_t
    expected = flow.network.middle((1 - level) * images, torch.full((40,), 1000 * level))
    torch.testing.assert_close(flow.features(images), expected)


@pytest.mark.parametrize(("timestep_sampling", "share"), [("logit_normal", 0.1587), ("uniform", 0.2689)])
def test_times_have_their_distribution(tiny: FlowConfig, timestep_sampling: str, share: float) -> None:
    """Below sigmoid(-1) = 0.2689 are that share of uniform times, and of logit-normal ones Phi(-1)."""
    flow = build(tiny.updated({"timestep_sampling": timestep_sampling}))
    n = 4000
    t = flow.draws(n, generator(0, "test"))["t"]
    below = float((t < 1 / (1 + math.e)).float().mean())
    # four standard errors of a share
    assert abs(below - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_samples_depend_on_their_own_generator_and_class(tiny: FlowConfig) -> None:
    flow = build(tiny).eval()
    assert isinstance(flow, Flow)
    for parameter in flow.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator(1, "test"))
    labels = torch.tensor([3, 7, 3])
    with torch.no_grad():
        three = flow.sample(3, generators(0, "sample", range(3)), labels=labels, guidance=0.5, steps=3)
        last = flow.sample(1, generators(0, "sample", [2]), labels=labels[2:], guidance=0.5, steps=3)
        other = flow.sample(1, generators(0, "sample", [2]), labels=labels[1:2], guidance=0.5, steps=3)
    torch.testing.assert_close(three[2:], last, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(last, other, atol=1e-3)


def test_what_it_cannot_do_is_refused(tiny: FlowConfig) -> None:
    flow = build(tiny)
    assert isinstance(flow, Flow)
    with pytest.raises(ValueError, match="unknown sampler 'dpm'"):
        flow.sample(1, sampler="dpm")  # type: ignore[arg-type]  # no such sampler
    with pytest.raises(ValueError, match="from 0 to 9"):
        flow.sample(1, labels=torch.tensor([10]))
    with pytest.raises(ValueError, match="1 or more"):
        solve_ode(velocity, NOISE, 0)
    with pytest.raises(ValueError, match="1 or more"):
        flow.sample(1, steps=0)
