"""The encoders against torchvision's ResNets and timm's networks, and the layout of the heads."""

import sys
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from genssl import config as configs
from genssl import distributed
from genssl.errors import UserError
from genssl.models.build import build
from genssl.models.resnet import WIDTHS, Encoder, TimmEncoder, build_encoder, mlp
from genssl.runtime import generator
from genssl.training.ddp import convert_batch_norm

from ..peers import import_peer

DEPTHS = ["resnet18", "resnet34", "resnet50"]


def torchvision_twin(name: str) -> ResNet:
    """torchvision's ResNet with a stem for small images and no classifier."""
    network: ResNet = getattr(models, name)()
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


def awake(encoder: Any) -> Any:
    """With norms that are neither zero nor the identity, as after some training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if tensor.ndim == 1:
                tensor.copy_(0.5 + torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor))
    return encoder


def images(n: int, side: int) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=generator(0, "test"))


@pytest.mark.parametrize("name", DEPTHS)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_encoder(name, 3, 32).state_dict(), getattr(models, name)().state_dict()
    assert [name for name in theirs if not name.startswith("fc.")] == list(ours)
    different = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert different == ["conv1.weight"]
    assert ours["conv1.weight"].shape == (64, 3, 3, 3)


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_the_same_weights_give_torchvisions_features(name: str, dim: int) -> None:
    encoder, twin = awake(build_encoder(name, 3, 16)), torchvision_twin(name)
    twin.load_state_dict(encoder.state_dict())
    x = images(2, 16)
    with torch.no_grad():
        expected = twin.eval()(x)
        torch.testing.assert_close(encoder.eval()(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder.train()(x), twin.train()(x), rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    assert expected.shape[1] == encoder.dim == dim


def test_a_block_starts_as_the_identity() -> None:
    encoder: Any = Encoder(2)
    x = images(3, 8)[:, :2].relu()
    assert torch.equal(encoder.layer1(x), x)
    shortcut = encoder.layer2[0].downsample
    torch.testing.assert_close(encoder.layer2(x), shortcut(x).relu())
    deep = Encoder(2, blocks=(2, 1, 1, 1), bottleneck=True)
    norms = {name: m.weight for name, m in deep.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {name for name, weight in norms.items() if not weight.any()} == {n for n in norms if "bn3" in n}
    assert torch.equal(deep.layer1[1](deep.layer1(x)), deep.layer1(x))
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


def test_the_compact_encoder_is_torchvisions_with_three_stages_and_a_stride_in_the_stem() -> None:
    encoder = awake(build_encoder("compact", 3, 16))
    twin = ResNet(BasicBlock, [1, 1, 1, 1])
    twin.conv1, twin.bn1 = nn.Conv2d(3, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32)
    # Three stages of half the widths, and no fourth
    twin.inplanes = 32
    twin.layer1, twin.layer2, twin.layer3 = (
        twin._make_layer(BasicBlock, planes, 1, stride) for planes, stride in ((32, 1), (64, 2), (128, 2))
    )
    twin.maxpool = twin.layer4 = twin.fc = nn.Identity()
    assert list(twin.state_dict()) == list(encoder.state_dict())
    twin.load_state_dict(encoder.state_dict())
    x = images(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(x), twin.eval()(x), rtol=1e-4, atol=1e-4)
    assert encoder.dim == 128
    assert [tuple(m.shape[1:]) for m in encoder.maps(x)] == [(32, 8, 8), (64, 4, 4), (128, 2, 2)]


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


# timm


def test_a_network_of_timm_is_timms() -> None:
    timm = import_peer("timm")
    encoder = build_encoder("timm:resnet10t", 1, 32)
    twin = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    state = {name.removeprefix("network."): value for name, value in awake(encoder).state_dict().items()}
    twin.load_state_dict(state)
    x = images(4, 32)[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(x), twin.eval()(x))
        torch.testing.assert_close(encoder.train()(x), twin.train()(x))
    assert encoder(x).shape == (4, encoder.dim)


def test_a_transformer_of_timm_takes_small_images_and_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = import_peer("timm")
    create, drops = timm.create_model, {"proj_drop_rate": 0.3, "drop_path_rate": 0.3}
    monkeypatch.setattr(timm, "create_model", lambda name, **settings: create(name, **settings, **drops))
    torch.manual_seed(0)
    encoder = TimmEncoder("vit_tiny_patch16_224", 3, 32)
    rates = [m.p for m in encoder.modules() if isinstance(m, nn.Dropout)]
    assert rates
    assert set(rates) == {0.0}
    x = images(2, 32)
    before = torch.random.get_rng_state()
    first, second = encoder.train()(x), encoder(x)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_method_on_a_network_of_timm_starts_from_its_seed() -> None:
    import_peer("timm")
    small = {"encoder": "timm:resnet10t", "projector_dim": 8, "projector_hidden": 8, "predictor_hidden": 4}
    one, same, other = (build(configs.make("simsiam", {**small, "seed": seed})) for seed in (0, 0, 1))
    assert torch.equal(one.features(images(2, 32)), same.features(images(2, 32)))
    first, second = (method.state_dict()["encoder.network.conv1.0.weight"] for method in (one, other))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("timm:resnet10x", "timm has no network 'resnet10x' .did you mean 'resnet10t'?."),
        ("timm:vgg11", "takes no images of 8x8 pixels .*; choose another network$"),
    ],
)
def test_what_timm_has_not_is_said_in_a_line(encoder: str, said: str) -> None:
    import_peer("timm")
    with pytest.raises(UserError, match=said) as caught:
        build_encoder(encoder, 3, 8)
    assert "\n" not in str(caught.value)


def test_a_transformer_for_one_size_takes_no_smaller_views() -> None:
    import_peer("timm")
    settings = {"encoder": "timm:vit_tiny_patch16_224", "view_size": 16}
    with pytest.raises(UserError, match="takes no images of 32x32 pixels and views of 16x16"):
        build(configs.make("simsiam", settings))


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm; pip install 'genssl\[features\]'"):
        build_encoder("timm:resnet10t", 3, 32)


def test_norms_that_several_processes_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import_peer("timm")
    method = build(configs.make("simclr", {"encoder": "timm:mobilenetv3_small_050"}))
    cpu = torch.device("cpu")
    assert convert_batch_norm(method, cpu) is method
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(
        UserError, match="the encoder has BatchNormAct2d, which several processes cannot share"
    ):
        convert_batch_norm(method, cpu)


@pytest.mark.parametrize("name", ["resnet19", "timm:", "", "Timm:resnet10t"])
def test_an_unknown_encoder_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(
        UserError, match="encoder must be resnet18, resnet34, resnet50, small, compact, or timm:NAME"
    ):
        configs.make("simsiam", {"encoder": name})


# Heads


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
