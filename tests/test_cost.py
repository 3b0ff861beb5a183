"""Counted costs against counts by hand, and bounds against their limits."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import cost
from benchmarks.bounds import A100, H200, HOP, Cost, gain, rate, step_seconds

SIDE = 32
# Two interpolations of a view, one for its columns in three planes and one for its rows
VIEW = 2 * 3 * SIDE**3


def convolution(side: int, kernel: int, source: int, target: int) -> int:
    """Multiply-adds of an image whose output has this side."""
    return side**2 * kernel**2 * source * target


def resnet18(width: int) -> int:
    total, source = convolution(SIDE, 3, 3, width), width
    for stage in range(4):
        side, target = SIDE >> stage, width << stage
        total += convolution(side, 3, source, target) + 3 * convolution(side, 3, target, target)
        total += convolution(side, 1, source, target) if stage else 0
        source = target
    return total


def vae() -> int:
    widths = [3, 32, 64, 128, 256]
    ahead = sum(convolution(16 >> i, 4, widths[i], widths[i + 1]) for i in range(4))
    back = sum(convolution(4 << i, 3, widths[4 - i], [128, 64, 32, 3][i]) for i in range(4))
    return ahead + back + 3 * 1024 * 32


def unet_tiny() -> int:
    widths, time = [32, 64, 96], 128
    total = 32 * time + time**2 + 2 * convolution(SIDE, 3, 3, 32)
    for level, width in enumerate(widths):
        block = 2 * convolution(SIDE >> level, 3, width, width) + 2 * time * width
        total += (2 + 2 * (width == 96)) * block + convolution(SIDE >> level, 1, 2 * width, width)
    total += sum(
        convolution(SIDE >> (i + 1), 3, a, b) + convolution(SIDE >> i, 3, b, a)
        for i, (a, b) in enumerate([(32, 64), (64, 96)])
    )
    places = (SIDE >> 2) ** 2
    return total + places * 96 * (4 * 96 + 2 * places)  # attention in the middle


def counted(method: str, settings: dict[str, str]) -> dict[str, int]:
    return cost.passes(cost.training_of(method, settings, 2))


def test_forward_counts_are_those_by_hand() -> None:
    assert counted("vae", {})["forward"] == 2 * vae()
    assert counted("ddpm", {"network": "tiny"})["forward"] == 2 * unet_tiny()
    heads = 128 * 2048 + 2048**2 + 2 * 2048 * 512
    view = resnet18(16) + heads + VIEW
    assert counted("simsiam", {"encoder": "small"})["forward"] == 2 * 2 * view


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_attention_is_counted_in_every_version_of_torch(backend: SDPBackend) -> None:
    query = torch.ones(2, 3, 5, 8, requires_grad=True)
    key, value = torch.ones(2, 2, 3, 7, 8, requires_grad=True)
    product = 2 * 2 * 3 * 5 * 7 * 8
    with cost.flop_counter() as flops, sdpa_kernel(backend):
        mixed = F.scaled_dot_product_attention(query, key, value)
        assert flops.get_total_flops() == 2 * product
        mixed.sum().backward()
    # only the fused kernel computes the weights again in its backward pass
    assert flops.get_total_flops() == (7 if backend == SDPBackend.FLASH_ATTENTION else 6) * product


def test_the_backward_pass_of_a_unet_computes_the_weights_of_attention_again() -> None:
    found = counted("ddpm", {"network": "tiny"})
    # neither the images nor the waves of t have gradients
    without_gradient = convolution(SIDE, 3, 3, 32) + 32 * 128
    weights = (SIDE >> 2) ** 4 * 96
    assert found["step"] == 3 * found["forward"] + 2 * (weights - without_gradient)


def test_resnet18_with_a_stem_for_small_images_is_as_large_as_it_is_known_to_be() -> None:
    assert round(resnet18(64) / 1e9, 2) == 0.56


def test_the_backward_pass_costs_twice_the_forward_pass_but_for_the_images() -> None:
    found = counted("vae", {})
    assert found["step"] == 3 * found["forward"] - 2 * convolution(16, 4, 3, 32)


def test_what_is_kept_is_counted_once() -> None:
    x, weight = torch.ones(4, 8, requires_grad=True), nn.Parameter(torch.ones(8, 8))
    with cost.keeping([weight]) as kept:
        hidden = (x @ weight).exp()  # keeps x, the weight, and the exponential
        hidden.sin().sum() + hidden.view(8, 4).cos().sum()  # keep the exponential again, and again as a view
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) == 4 * (32 + 32)


def test_operators_leave_out_views() -> None:
    x = torch.ones(4, 8)
    operators = cost.Operators()
    with operators:
        (x.view(8, 4).T @ x.expand(1, 4, 8)[0].reshape(8, 4) + 1).relu_()
    assert (operators.count, operators.products) == (3, 1)
    assert operators.bytes == 4 * ((32 + 32 + 16) + (16 + 16) + (16 + 16))


@pytest.fixture
def plain() -> Cost:
    sizes = {"bf16": 100, "fp32": 200}
    whole = dict.fromkeys(sizes, 0)
    return Cost(
        name="plain", batch=64, run_images=1, parameters=10, forward=10**8, step=3 * 10**8, undivided=0,
        state_bytes=0, gradient_bytes=0, kept_bytes=sizes, traffic_bytes=sizes, step_traffic_bytes=whole,
        operators=100, products=10, norm_calls=(0, 0), norm_bytes=0, feature_bytes=0, random_bytes=0,
    )  # fmt: skip


def test_a_large_batch_runs_at_the_peak_and_scales(plain: Cost) -> None:
    assert rate(plain, A100, 10**6, fused=True) == pytest.approx(A100.multiply_adds / plain.step)
    assert gain(plain, H200, 10**6, 8, fused=True) == pytest.approx(8)
    assert gain(plain, H200, 64, 8, fused=False) == 1  # launches are not divided


def test_messages_and_what_is_not_divided_are_added(plain: Cost) -> None:
    alone = step_seconds(plain, H200, 10**6, 8, fused=True)
    norms = replace(plain, norm_calls=(3, 2))
    assert step_seconds(norms, H200, 10**6, 8, fused=True) - alone == pytest.approx(HOP * 3 * (3 + 2 * 2))
    whole = replace(plain, undivided=plain.step)
    assert gain(whole, H200, 10**6, 8, fused=True) == pytest.approx(1)
    sent = replace(plain, gradient_bytes=10**12)
    assert step_seconds(sent, H200, 64, 8, fused=True) == pytest.approx(2 * 7 / 8 * 1e12 / H200.link)
    assert step_seconds(sent, H200, 64, 16, fused=True, network=1e9) == pytest.approx(2 * 15 / 16 * 1e3)
    assert math.isfinite(rate(sent, H200, 64, 64, fused=False))
