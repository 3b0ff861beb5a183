"""The U-Net: its sizes, its start, and that layout and batch change nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genssl.models.unet import LAYOUTS, Attention, Dropout, Layout, ResidualBlock, UNet, sinusoids
from genssl.runtime import generator

SMALLEST = Layout((16, 32), (1, 2), (True, False))


def awake(layout: Layout = SMALLEST) -> UNet:
    """A network whose zero-initialized layers have been moved, as after some training."""
    torch.manual_seed(0)
    network = UNet(layout)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


def images(n: int = 3, side: int = 8) -> tuple[Tensor, Tensor]:
    source = generator(0, "test")
    return torch.randn(n, 3, side, side, generator=source), torch.randint(0, 1000, (n,), generator=source)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("tiny", 0.8e6, 1.3e6), ("compact", 2e6, 3e6), ("small", 9e6, 11.5e6), ("base", 34e6, 38e6)],
)
def test_networks_have_the_promised_sizes(name: str, least: float, most: float) -> None:
    with torch.device("meta"):
        network = UNet(LAYOUTS[name])
    assert least < sum(p.numel() for p in network.parameters()) < most


@pytest.mark.parametrize("side", [8, 24])
def test_any_side_that_halves_often_enough_is_taken(side: int) -> None:
    network = UNet(Layout((16, 16, 32, 32), (1, 1, 1, 1), (False, True, False, False)))
    x, t = images(2, side)
    assert network(x, t).shape == x.shape
    assert network.middle(x, t).shape == (2, 32)


def test_a_patch_is_one_place_with_the_colors_of_its_pixels() -> None:
    # a network of patches is one without them, on images whose patches were cut and stacked by hand
    network = awake(Layout((16, 32), (1, 2), (True, False), patch=2))
    x, t = images(2, 16)
    stacked = x.reshape(2, 3, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 8, 8)
    plain = UNet(SMALLEST, channels=12)
    plain.load_state_dict(network.state_dict())
    expected = plain(stacked, t).reshape(2, 3, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 16, 16)
    torch.testing.assert_close(network(x, t), expected)
    torch.testing.assert_close(network.middle(x, t), plain.middle(stacked, t))


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention = Attention(32)
    reference = nn.MultiheadAttention(32, 1, batch_first=True)
    with torch.no_grad():
        attention.project.weight.normal_()
        reference.in_proj_weight.copy_(attention.query_key_value.weight)
        reference.in_proj_bias.copy_(attention.query_key_value.bias.normal_())
        reference.out_proj.weight.copy_(attention.project.weight)
        reference.out_proj.bias.copy_(attention.project.bias.normal_())
    x = torch.randn(2, 32, 3, 5, generator=generator(0, "test"))
    places = attention.norm(x).flatten(2).transpose(1, 2)
    mixed, _ = reference(places, places, places)
    expected = x + mixed.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-4)


def test_a_new_network_says_zero() -> None:
    torch.manual_seed(0)
    x, t = images()
    assert not UNet(SMALLEST)(x, t).any()


def test_the_time_scales_and_shifts_what_is_normalized() -> None:
    block, x, time = ResidualBlock(16, 4), torch.randn(2, 16, 4, 4), torch.ones(2, 4)
    with torch.no_grad():
        block.conv_2.weight.normal_()
        block.scale_shift.weight.zero_()
        block.scale_shift.bias.zero_()
    hidden = block.norm_2(block.conv_1(F.silu(block.norm_1(x))))
    torch.testing.assert_close(block(x, time), x + block.conv_2(F.silu(hidden)))  # told nothing
    with torch.no_grad():
        block.scale_shift.bias[:16] = 0.5
        block.scale_shift.bias[16:] = -1
    torch.testing.assert_close(block(x, time), x + block.conv_2(F.silu(1.5 * hidden - 1)))


def test_gradient_reaches_every_parameter() -> None:
    network = awake()
    x, t = images()
    network(x, t).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("query_key_value.bias"):  # a key's bias shifts a softmax evenly: it does nothing
            width = len(parameter) // 3
            assert parameter.grad[:width].any()
            assert parameter.grad[2 * width :].any()
        else:
            assert parameter.grad.abs().max() > 1e-7, name


def test_memory_layout_changes_nothing() -> None:
    network = awake()
    x, t = images()
    expected = network(x, t)
    last = network.to(memory_format=torch.channels_last)
    found = last(x.contiguous(memory_format=torch.channels_last), t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_image_is_seen_apart_from_its_batch() -> None:
    network = awake()
    x, t = images(4)
    torch.testing.assert_close(network(x, t)[2:3], network(x[2:3], t[2:3]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.middle(x, t)[2:3], network.middle(x[2:3], t[2:3]))


def test_bf16_gives_nearly_the_same_in_float32() -> None:
    network = awake()
    x, t = images()
    expected = network(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x, t)
        embedded = network.time_embedding(t)
    assert found.dtype == embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, network.time_embedding(t))
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.03


def test_every_time_is_told_from_its_neighbor() -> None:
    t = torch.arange(1500)
    waves = sinusoids(t, 32)
    assert waves.shape == (1500, 32)
    torch.testing.assert_close(waves[:, 0], t.double().sin().float(), rtol=0, atol=2e-4)
    torch.testing.assert_close(waves[:, -1], (t.double() / 10_000).cos().float(), rtol=0, atol=2e-4)
    assert (waves[1:] - waves[:-1]).norm(dim=1).min() > 0.5


def test_the_output_depends_on_the_time() -> None:
    network = awake()
    x, _ = images()
    first, second = (network(x, torch.full((3,), t)) for t in (10, 500))
    assert (first - second).abs().max() > 1e-3


def mask_of(network: UNet, n: int, side: int, p: float) -> Tensor:
    return torch.rand(n, network.dropout_size(side), generator=generator(0, "mask")) >= p


@pytest.mark.parametrize("layout", [SMALLEST, Layout((16, 32), (1, 2), (True, False), patch=2)])
def test_dropout_uses_each_draw_once(layout: Layout) -> None:
    network = awake(layout)
    x, t = images(2, 16)
    dropout = Dropout(mask_of(network, 2, 16, 0.1), 0.1)
    changed = network(x, t, dropout=dropout)
    assert dropout.used == network.dropout_size(16)
    assert not torch.equal(changed, network(x, t))
    # Nothing dropped, and nothing scaled: the network itself
    torch.testing.assert_close(
        network(x, t, dropout=Dropout(mask_of(network, 2, 16, 0.0), 0.0)), network(x, t)
    )


def test_a_block_drops_before_its_second_convolution() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(16, 8)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    x, time = torch.randn(2, 16, 4, 4), torch.randn(2, 8)
    mask = torch.rand(2, 16 * 4 * 4) >= 0.25
    seen: list[Tensor] = []
    hook = block.conv_2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(x, time), block(x, time, Dropout(mask, 0.25))
    hook.remove()
    plain, dropped = seen
    # The draws are in the order of (height, width, channel)
    zeros = ~mask.view(2, 4, 4, 16).permute(0, 3, 1, 2)
    assert (dropped[zeros] == 0).all()
    torch.testing.assert_close(dropped[~zeros], plain[~zeros] / 0.75)


def test_dropout_keeps_the_mean() -> None:
    # 40,000 draws of 1.25 with probability 0.8, else 0: their mean has the standard error 0.5 / 200
    x = torch.ones(100, 4, 10, 10)
    mean = Dropout(torch.rand(100, 400, generator=generator(0, "mask")) >= 0.2, 0.2)(x).mean()
    assert abs(float(mean) - 1) < 4 * 0.5 / 200
