"""The encoder against torchvision's ResNet-18, and the layout of the heads."""

import pytest
import torch
from torch import nn
from torchvision.models import ResNet, resnet18

from genssl.models.resnet import WIDTHS, Encoder, mlp
from genssl.runtime import generator


def torchvision_twin() -> ResNet:
    """torchvision's ResNet-18 with a stem for small images and no classifier."""
    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


def awake(encoder: Encoder) -> Encoder:
    """With norms that are neither zero nor the identity, as after some training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if tensor.ndim == 1:
                tensor.copy_(0.5 + torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor))
    return encoder


def images(n: int, side: int) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=generator(0, "test"))


def test_names_and_shapes_are_torchvisions() -> None:
    with torch.device("meta"):
        ours, theirs = Encoder(64).state_dict(), resnet18().state_dict()
    assert [name for name in theirs if not name.startswith("fc.")] == list(ours)
    different = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert different == ["conv1.weight"]
    assert ours["conv1.weight"].shape == (64, 3, 3, 3)


def test_the_same_weights_give_torchvisions_features() -> None:
    encoder, twin = awake(Encoder(64)), torchvision_twin()
    twin.load_state_dict(encoder.state_dict())
    x = images(2, 16)
    with torch.no_grad():
        expected = twin.eval()(x)
        torch.testing.assert_close(encoder.eval()(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder.train()(x), twin.train()(x), rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_a_block_starts_as_the_identity() -> None:
    encoder = Encoder(2)
    x = images(3, 8)[:, :2].relu()
    assert torch.equal(encoder.layer1(x), x)
    shortcut = encoder.layer2[0].downsample  # type: ignore[union-attr,operator]
    torch.testing.assert_close(encoder.layer2(x), shortcut(x).relu())  # type: ignore[operator]
    others = [
        m.weight for n, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d) and "bn2" not in n
    ]
    assert all(bool((weight == 1).all()) for weight in others)


def test_convolutions_start_as_he_et_al_say() -> None:
    torch.manual_seed(0)
    for name, module in Encoder(16).named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            spread = module.weight.std().item() * (fan_out / 2) ** 0.5
            # the standard error of a deviation of n normal numbers is 1 / sqrt(2 n) of it
            assert spread == pytest.approx(1, abs=4 / (2 * module.weight.numel()) ** 0.5), name


def test_the_small_encoder_is_a_quarter_as_wide() -> None:
    with torch.device("meta"):
        small, large = Encoder(WIDTHS["small"]), Encoder(WIDTHS["resnet18"])
    assert (small.dim, large.dim) == (128, 512)
    for name, weight in large.named_parameters():
        divided = [size // 4 if place < 2 and size > 3 else size for place, size in enumerate(weight.shape)]
        assert list(small.get_parameter(name).shape) == divided, name


def test_parameters_are_counted() -> None:
    with torch.device("meta"):
        found = sum(p.numel() for p in Encoder(64).parameters())
    # torchvision counts 11,689,512: less the classifier, and a stem of 3x3 instead of 7x7
    assert found == 11_689_512 - (512 * 1000 + 1000) - 64 * 3 * (49 - 9)


@pytest.mark.parametrize("side", [8, 9, 13, 32])
def test_any_size_from_eight_on_is_taken(side: int) -> None:
    encoder = awake(Encoder(2))
    assert encoder(images(2, side)).shape == (2, 16)


def test_features_do_not_depend_on_the_rest_of_the_batch() -> None:
    encoder = awake(Encoder(2)).eval()
    x = images(4, 8)
    torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]))
    laid_out = encoder.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(laid_out, encoder(x.contiguous()))


def layout(network: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in network]


def test_heads_are_laid_out_as_in_the_papers() -> None:
    inner = ["Linear", "BatchNorm1d", "ReLU"]
    assert layout(mlp([4, 3])) == ["Linear"]
    assert layout(mlp([4, 3, 5, 2])) == [*inner, *inner, "Linear"]
    assert layout(mlp([4, 3, 2], norm_last=True)) == [*inner, "Linear", "BatchNorm1d"]
    shapes = [tuple(layer.weight.shape) for layer in mlp([4, 3, 5, 2]) if isinstance(layer, nn.Linear)]
    assert shapes == [(3, 4), (5, 3), (2, 5)]


@pytest.mark.parametrize("norm_last", [False, True])
def test_no_bias_where_a_norm_would_remove_it(norm_last: bool) -> None:
    head = mlp([4, 3, 5, 2], norm_last=norm_last)
    biases = [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)]
    assert biases == [False, False, not norm_last]
    scales = [layer.affine for layer in head if isinstance(layer, nn.BatchNorm1d)]
    assert scales == [True, True] + [False] * norm_last


def test_a_head_ends_with_a_norm_where_asked() -> None:
    z = mlp([4, 6, 3], norm_last=True)(torch.randn(50, 4, generator=generator(0, "test")))
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3), rtol=1e-2, atol=0)
