"""Features of every pixel: what they are made of, and what they depend on."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genssl.config import DDPMConfig, FlowConfig, SimSiamConfig, VAEConfig
from genssl.errors import UserError
from genssl.models import unet
from genssl.models.build import build
from genssl.models.ddpm import DDPM
from genssl.models.diffusion import q_sample
from genssl.models.flow import Flow
from genssl.models.method import HasSpatialFeatures, Method, pixel_features
from genssl.models.resnet import Backbone
from genssl.models.unet import Layout, UNet
from genssl.runtime import generator

SIDE = 16
NOISE = torch.randn(3, SIDE, SIDE, generator=generator(0, "test", 1))
CONFIGS = {
    "ddpm": DDPMConfig(network="tiny", image_size=SIDE, timesteps=100, features_t=5),
    "flow": FlowConfig(network="tiny", image_size=SIDE),
    "vae": VAEConfig(width=4, z_dim=3, image_size=SIDE),
    "simsiam": SimSiamConfig(encoder="small", projector_dim=8, projector_hidden=8, image_size=SIDE),
}
WIDTHS = {"ddpm": [32, 16, 16], "flow": [32, 16, 16], "vae": [4, 8, 16, 32], "simsiam": [16, 32, 64, 128]}


@pytest.fixture
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Method:
    """A small method in eval mode, whose zero-initialized layers have been moved."""
    monkeypatch.setitem(unet.LAYOUTS, "tiny", Layout((16, 32), (2, 1), (False, True)))
    method = build(CONFIGS[request.param]).eval()
    source = generator(0, "test", 2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    return method


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=generator(0, "test")) * 2 - 1


def spatial(method: Method) -> HasSpatialFeatures:
    assert isinstance(method, HasSpatialFeatures)
    return method


def outputs_of(network: UNet) -> list[Tensor]:
    """A list that torch's hooks fill with what each block on the way up gives."""
    seen: list[Tensor] = []
    for stage in reversed(network.up_stages):
        assert isinstance(stage, unet.Stage)
        for attention in stage.attentions:
            attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    return seen


@pytest.mark.parametrize("method", CONFIGS, indirect=True)
@torch.no_grad()
def test_features_are_those_of_the_image_alone(method: Method) -> None:
    model, x = spatial(method), images()
    whole = model.spatial_features(x, NOISE)
    times = max(1, len(model.spatial_times))
    assert model.spatial_blocks == len(WIDTHS[method.config.method])
    assert whole.shape == (4, times * sum(WIDTHS[method.config.method]), SIDE, SIDE)
    assert whole.dtype == torch.float32
    alone = torch.cat([model.spatial_features(image[None], NOISE) for image in x])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[0], whole[1])


@pytest.mark.parametrize("method", CONFIGS, indirect=True)
@torch.no_grad()
def test_blocks_and_times_are_the_parts_of_the_whole_in_their_order(method: Method) -> None:
    model, x = spatial(method), images(2)
    widths = WIDTHS[method.config.method]
    times: list[list[float] | None] = [[t] for t in model.spatial_times] or [None]
    parts = [
        model.spatial_features(x, NOISE, blocks=[block], times=time)
        for time in times
        for block in range(len(widths))
    ]
    assert [part.shape[1] for part in parts] == widths * (len(parts) // len(widths))
    torch.testing.assert_close(torch.cat(parts, 1), model.spatial_features(x, NOISE))


@pytest.mark.parametrize("method", ["ddpm"], indirect=True)
@torch.no_grad()
def test_a_ddpm_looks_at_images_with_one_noise_at_the_levels_of_the_paper(method: Method) -> None:
    assert isinstance(method, DDPM)
    model, x = spatial(method), images(2)
    assert model.spatial_times == (16, 48, 79)  # as noisy as 50, 150, 250 of 1,000: the betas are the same
    seen = outputs_of(method.network)
    found = model.spatial_features(x, NOISE, times=[15])
    t = torch.tensor([15, 15])
    seen.clear()
    method.network(q_sample(method.schedule, x, t, NOISE.expand_as(x)), t)
    up = [F.interpolate(m, (SIDE, SIDE), mode="bilinear") for m in seen]
    torch.testing.assert_close(found, torch.cat(up, 1))
    assert [m.shape[2] for m in seen] == [8, 16, 16]  # coarse to fine
    without = model.spatial_features(x, times=[15])
    torch.testing.assert_close(without, model.spatial_features(x, torch.zeros_like(NOISE), times=[15]))
    assert not torch.allclose(without, found)


@pytest.mark.parametrize("method", ["flow"], indirect=True)
@torch.no_grad()
def test_a_flow_looks_at_points_of_the_line_to_the_noise(method: Method) -> None:
    assert isinstance(method, Flow)
    model, x = spatial(method), images(2)
    seen = outputs_of(method.network)
    found = model.spatial_features(x, NOISE, times=[0.25])
    seen.clear()
    method.network(0.75 * x + 0.25 * NOISE, torch.full((2,), 250.0))
    up = [F.interpolate(m, (SIDE, SIDE), mode="bilinear") for m in seen]
    torch.testing.assert_close(found, torch.cat(up, 1))


@pytest.mark.parametrize(
    "changes", [{"beta_schedule": "cosine"}, {"timesteps": 400, "scale_betas": True}, {"timesteps": 400}]
)
def test_the_default_times_are_as_noisy_whatever_the_schedule(changes: dict[str, Any]) -> None:
    paper, ddpm = build(DDPMConfig(network="tiny")), build(DDPMConfig(network="tiny", **changes))
    assert isinstance(paper, DDPM)
    assert isinstance(ddpm, DDPM)
    assert paper.spatial_times == (50, 150, 250)
    for t, time in zip((50, 150, 250), ddpm.spatial_times, strict=True):
        signal, expected = ddpm.schedule.alphas_cumprod[int(time)], paper.schedule.alphas_cumprod[t]
        # half a step of 400
        assert float(signal) == pytest.approx(float(expected), abs=0.005)


def test_the_default_times_of_a_flow_have_the_noise_of_the_ddpm_s() -> None:
    ddpm, flow = build(DDPMConfig(network="tiny")), build(FlowConfig(network="tiny"))
    assert isinstance(ddpm, DDPM)
    schedule = ddpm.schedule
    for t, time in zip((50, 150, 250), spatial(flow).spatial_times, strict=True):
        signal, std = float(schedule.sqrt_alphas_cumprod[t]), float(schedule.sqrt_one_minus_alphas_cumprod[t])
        assert time / (1 - time) == pytest.approx(std / signal, abs=0.02)


@torch.no_grad()
def test_features_of_pixels_are_bilinear() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    fine = torch.arange(8.0).expand(1, 1, 8, 8)
    found = pixel_features([ramp, fine], (8, 8))
    assert found.shape == (1, 2, 8, 8)
    # Centers of the fine pixels lie a quarter of a coarse one beside its center
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(found[0, 0, 3], expected)
    torch.testing.assert_close(found[0, 1], fine[0, 0])


@pytest.mark.parametrize("method", ["ddpm", "flow"], indirect=True)
@pytest.mark.parametrize(
    "wrong", [{"blocks": [3]}, {"blocks": [-1]}, {"blocks": []}, {"times": [-1]}, {"times": [1000]}]
)
def test_blocks_and_times_that_there_are_not(method: Method, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        spatial(method).spatial_features(images(1), **wrong)


@pytest.mark.parametrize("method", ["ddpm"], indirect=True)
def test_a_ddpm_has_no_times_between_its_steps(method: Method) -> None:
    with pytest.raises(ValueError, match=r"times must be whole, from 0 to 99, not 5\.5"):
        spatial(method).spatial_features(images(1), times=[5.5])


def test_an_encoder_without_stages_says_so() -> None:
    with pytest.raises(UserError, match="no maps of their stages"):
        Backbone().maps(images(1))


def test_a_method_without_maps_has_no_spatial_features() -> None:
    assert not isinstance(nn.Module(), HasSpatialFeatures)
    assert not isinstance(Method(), HasSpatialFeatures)
