"""The U-Net against those of denoising-diffusion-pytorch and diffusers, and fast against slow sampling.

For each peer there is a U-Net of ours with its parameters and multiply-adds, both within 5 %. A peer runs as
it comes, in fp32, and tuned: channels_last, bf16 autocast and a fused optimizer, as genssl runs ours.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cost import flop_counter
from benchmarks.timing import SIDES
from genssl.config import DDPMConfig
from genssl.models.build import build
from genssl.models.diffusion import linear_schedule, p_losses, q_sample
from genssl.models.unet import Layout, UNet
from genssl.runtime import (
    StepNoise,
    autocast,
    choose_device,
    choose_precision,
    describe,
    generators,
    normal,
)

BATCH = 16
TRAIN_STEPS, FORWARD_STEPS = 4, 12
TOLERANCE = 0.05  # of parameters and of multiply-adds
SAMPLES = 64
NOISED, NOISE_ROUNDS = 512, 3
PLAIN = (False,) * 4

Predict = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> epsilon


@dataclass(frozen=True)
class Peer:
    """A peer's network and the layout of ours that matches it."""

    name: str
    network: nn.Module
    predict: Predict
    layout: Layout


def peers() -> list[Peer]:
    """Both peers; they come with the `bench` extra."""
    from denoising_diffusion_pytorch import Unet
    from diffusers import UNet2DModel

    first = Unet(dim=32, dim_mults=(1, 2, 4, 8))
    down, attention = "DownBlock2D", "AttnDownBlock2D"
    up, attention_up = "UpBlock2D", "AttnUpBlock2D"
    second = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 128, 256),
        down_block_types=(down, down, attention, down),
        up_block_types=(up, attention_up, up, up),
    )
    return [
        Peer("denoising-diffusion-pytorch", first, first, Layout((32, 96, 176, 272), (1, 2, 1, 1), PLAIN)),
        Peer(
            "diffusers",
            second,
            lambda x, t: second(x, t).sample,
            Layout((48, 96, 144, 368), (2, 2, 1, 1), PLAIN),
        ),
    ]


def cost(network: nn.Module, predict: Predict) -> tuple[int, int]:
    """Parameters, and multiply-adds of one 32x32 image."""
    x, t = torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)
    with flop_counter() as counter, torch.no_grad():
        predict(x, t)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


def tune(peer: Peer) -> Peer:
    """A copy of the peer with channels_last weights."""
    network = copy.deepcopy(peer.network).to(memory_format=torch.channels_last)
    predict = network if peer.predict is peer.network else lambda x, t: network(x, t).sample
    return Peer(peer.name, network, predict, peer.layout)


def their_step(peer: Peer, device: torch.device, *, tuned: bool) -> Callable[[], None]:
    """A plain training step: in fp32 as the peer comes, or with bf16 autocast and a fused optimizer."""
    precision = choose_precision("auto", device) if tuned else "fp32"
    layout = torch.channels_last if tuned else torch.contiguous_format
    optimizer = torch.optim.Adam(peer.network.parameters(), lr=1e-4, fused=tuned)
    schedule = linear_schedule().to(device)
    x = (torch.rand(BATCH, 3, 32, 32, device=device) * 2 - 1).contiguous(memory_format=layout)

    def step() -> None:
        t = torch.randint(0, 1000, (BATCH,), device=device)
        noise = torch.randn_like(x)
        with autocast(device, precision):
            loss = F.smooth_l1_loss(peer.predict(q_sample(schedule, x, t, noise), t).float(), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(network: UNet, device: torch.device) -> Callable[[], None]:
    """The same step as genssl takes it."""
    precision = choose_precision("auto", device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    schedule = linear_schedule().to(device)
    x = (torch.rand(BATCH, 3, 32, 32, device=device) * 2 - 1).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        t = torch.randint(0, 1000, (BATCH,), device=device)
        with autocast(device, precision):
            loss = p_losses(network, schedule, x, t, torch.randn_like(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def forward_of(predict: Predict, device: torch.device, precise: bool) -> Callable[[], None]:
    """A forward pass without gradients."""
    precision = "fp32" if precise else choose_precision("auto", device)
    x, t = torch.rand(BATCH, 3, 32, 32, device=device), torch.full((BATCH,), 500, device=device)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, precision):
            predict(x, t)

    return forward


def rate(action: Callable[[], None], times: int, device: torch.device) -> Callable[[], float]:
    """Images a second over `times` actions, each time it is called."""

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(times):
            action()
        synchronize(device)
        return times * BATCH / (time.perf_counter() - start)

    return measure


def training_sides(peer: Peer, device: torch.device) -> dict[str, Callable[[], float]]:
    """Training steps of the peer as it comes, tuned, and of ours of the same size."""
    torch.manual_seed(0)
    ours = UNet(peer.layout)
    for theirs, own in zip(cost(peer.network, peer.predict), cost(ours, ours), strict=True):
        assert abs(own / theirs - 1) <= TOLERANCE, (theirs, own)
    peer.network.to(device)
    ours = ours.to(device).to(memory_format=torch.channels_last)
    steps = (their_step(peer, device, tuned=False), their_step(tune(peer), device, tuned=True))
    rates = [rate(step, TRAIN_STEPS, device) for step in (*steps, our_step(ours, device))]
    return dict(zip(SIDES, rates, strict=True))


def forward_sides(peer: Peer, device: torch.device) -> dict[str, Callable[[], float]]:
    """The same three forward passes."""
    peer.network.to(device)
    ours = UNet(peer.layout).to(device).to(memory_format=torch.channels_last)
    passes: list[tuple[Callable[[Tensor, Tensor], Tensor], bool]]
    passes = [(peer.predict, True), (tune(peer).predict, False), (ours, False)]
    rates = [rate(forward_of(predict, device, precise), FORWARD_STEPS, device) for predict, precise in passes]
    return dict(zip(SIDES, rates, strict=True))


def sampling(device: torch.device) -> None:
    """Print the time of 64 images by both samplers, with the network `tiny`."""
    method: Any = build(DDPMConfig(data="synthetic", network="tiny")).to(device).eval()
    for sampler, steps in (("dpm++", 20), ("ancestral", 1000)):
        start = time.perf_counter()
        with torch.inference_mode():
            method.sample(SAMPLES, generators(0, "sample", range(SAMPLES)), sampler, steps)
        seconds = time.perf_counter() - start
        print(f"sample {SAMPLES} images, {sampler}: {steps} network calls, {seconds:.1f} s")


def noise_times(device: torch.device, images: int = NOISED, network: str = "tiny") -> dict[str, float]:
    """Milliseconds of an ancestral step's parts, medians of rounds in turn.

    `noise_host_ms` is until the call returns, whatever the device has left to do; `loop_ms` is of a loop over
    the images' generators.
    """
    method: Any = build(DDPMConfig(data="synthetic", network=network)).to(device).eval()
    x = torch.randn(images, 3, 32, 32, device=device)
    times, sources = torch.full((images,), 5, device=device), generators(0, "sample", range(images))
    noise = StepNoise(x.shape, sources, device)
    parts: dict[str, Callable[[], object]] = {
        "network_ms": lambda: method.network(x, times),
        "noise_ms": lambda: [noise(5) for _ in range(noise.ahead)],
        "loop_ms": lambda: normal(x.shape, sources, device),
    }
    found: dict[str, list[float]] = {"noise_host_ms": [], **{name: [] for name in parts}}
    with torch.inference_mode():
        for _ in range(NOISE_ROUNDS + 1):
            for name, part in parts.items():
                calls = noise.ahead if name == "noise_ms" else 1
                start = time.perf_counter()
                part()
                host = time.perf_counter() - start
                synchronize(device)
                found[name].append((time.perf_counter() - start) / calls)
                if name == "noise_ms":
                    found["noise_host_ms"].append(host / calls)
    # The first round warms up
    return {name: round(1000 * statistics.median(seconds[1:]), 3) for name, seconds in found.items()}


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    device = choose_device("auto")
    print(f"device: {describe(device)}")
    found = noise_times(device)
    share, loop = (found[name] / found["network_ms"] for name in ("noise_ms", "loop_ms"))
    print(f"noise of an ancestral step of {NOISED} images, network tiny: {found}")
    print(f"  {share:.1%} of the network's time; a loop over the images' generators {loop:.1%}")
    sampling(device)


if __name__ == "__main__":
    main()
