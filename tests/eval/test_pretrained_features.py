"""The features of published weights: how they are fetched and read, and the networks, with random weights."""

import dataclasses
import hashlib
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from genssl.commands import _run
from genssl.errors import UserError
from genssl.eval import fidelity_features as features
from genssl.eval.feature_cache import FeatureSpace
from genssl.pixels import to_model
from genssl.runtime import generator

from ..peers import import_peer
from . import graphs

CPU = torch.device("cpu")


def ignore(*_: object) -> None: ...


@pytest.fixture(scope="module")
def constants() -> dict[str, Tensor]:
    return graphs.random_constants()


@pytest.fixture(scope="module")
def graph(constants: dict[str, Tensor]) -> bytes:
    return graphs.encode(constants)


@pytest.fixture(scope="module")
def network(graph: bytes) -> nn.Module:
    return features.inception(graph).eval().requires_grad_(False)


def pictures(n: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (n, 3, height, width), generator=generator(0, "test"), dtype=torch.uint8)


# The graph


def test_constants_are_read_as_they_were_written(graph: bytes, constants: dict[str, Tensor]) -> None:
    found = features.read_constants(graph)
    assert found.keys() == constants.keys()  # no integers, no other nodes
    for name, values in constants.items():
        assert torch.equal(found[name], values), name


def test_values_may_be_packed_or_single_or_one_for_all() -> None:
    one_each = b"".join(graphs.varint(5 << 3 | 5) + graphs.floats(value) for value in (1.5, -2.0))
    graph = (
        graphs.constant("packed", (2, 1), graphs.field(5, graphs.floats(1.5, -2)))
        + graphs.constant("single", (2,), one_each)
        + graphs.constant("filled", (2, 3), graphs.field(5, graphs.floats(0.25)))
        + graphs.constant("scalar", (), graphs.field(5, graphs.floats(7)))
    )
    found = features.read_constants(graph)
    assert {name: values.tolist() for name, values in found.items()} == {
        "packed": [[1.5], [-2]], "single": [1.5, -2], "filled": [[0.25] * 3] * 2, "scalar": 7,
    }  # fmt: skip


def test_a_graph_that_is_cut_off_anywhere_is_refused() -> None:
    graph = graphs.constant("a", (3,), graphs.field(4, graphs.floats(1, 2, 3)))
    for end in range(1, len(graph)):
        with pytest.raises(ValueError, match=r"truncated|without an end"):
            features.read_constants(graph[:end])


@pytest.mark.parametrize(
    "graph",
    [
        graphs.constant("a", (4,), graphs.field(4, graphs.floats(1, 2, 3))),
        graphs.constant("a", (1 << 40,), graphs.field(5, graphs.floats(1))),
        graphs.constant("a", (2,), b""),
        b"\x0b\x0c",  # a group
        b"\x80" * 11,
        b"not a graph",
    ],
)
def test_what_is_no_graph_is_refused(graph: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        features.read_constants(graph)


# Inception


def test_all_convolutions_have_tensorflow_s_names(network: nn.Module) -> None:
    names = features.tensorflow_names(network)
    assert sorted(names.values()) == sorted(graphs.shapes())
    assert len(names) == len(set(names.values())) == 94
    assert names["Mixed_6e.block.branch7x7dbl_5"] == "mixed_7/tower_1/conv_4"
    assert names["Mixed_7c.block.branch3x3dbl_3b"] == "mixed_10/tower_1/mixed/conv_1"


class Reference:
    """The graph node by node, in float64, from TensorFlow's names."""

    def __init__(self, constants: dict[str, Tensor]) -> None:
        self.constants = {name: values.double() for name, values in constants.items()}

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: str = "same") -> Tensor:
        kernel = self.constants[f"{name}/conv2d_params"].permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, stride=stride, padding=padding)
        gamma, beta, mean, variance = (
            self.constants[f"{name}/batchnorm/{part}"][:, None, None]
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return ((x - mean) / (variance + 0.001).sqrt() * gamma + beta).relu()

    def chain(self, x: Tensor, *names: str, last_stride: int = 1) -> Tensor:
        for name in names[:-1]:
            x = self.conv(x, name)
        return self.conv(x, names[-1], last_stride, "same" if last_stride == 1 else "valid")

    def pool(self, x: Tensor, kind: str) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), value=float("nan"))  # outside counts for nothing
        windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
        return windows.nanmean(4) if kind == "average" else windows.nan_to_num(nan=-torch.inf).amax(4)

    def block(self, x: Tensor, name: str) -> Tensor:
        conv = [f"{name}/{{}}/conv{suffix}" for suffix in ("", "_1", "_2", "_3", "_4")]

        def tower(i: int, count: int, stride: int = 1) -> Tensor:
            names = [text.format(f"tower_{i}" if i else "tower") for text in conv[:count]]
            return self.chain(x, *names, last_stride=stride)

        def fork(y: Tensor, i: str) -> list[Tensor]:
            return [self.conv(y, f"{name}/{i}/mixed/{last}") for last in ("conv", "conv_1")]

        number = int(name.partition("_")[2] or 0)
        if number in {3, 8}:
            first = [self.conv(x, f"{name}/conv", 2, "valid")] if number == 3 else []
            towers = [tower(0, 3, 2)] if number == 3 else [tower(0, 2, 2), tower(1, 4, 2)]
            return torch.cat([*first, *towers, F.max_pool2d(x, 3, 2)], 1)
        pooled = self.pool(x, "maximum" if number == 10 else "average")
        last = self.conv(pooled, f"{name}/tower_2/conv")
        if number < 3:
            middle = [tower(0, 2), tower(1, 3)]
        elif number < 8:
            middle = [tower(0, 3), tower(1, 5)]
        else:
            middle = [*fork(tower(0, 1), "tower"), *fork(tower(1, 2), "tower_1")]
        return torch.cat([self.conv(x, f"{name}/conv"), *middle, last], 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.conv(x.double(), "conv", 2, "valid")
        x = self.conv(self.conv(x, "conv_1", 1, "valid"), "conv_2")
        x = self.conv(F.max_pool2d(x, 3, 2), "conv_3")
        x = F.max_pool2d(self.conv(x, "conv_4", 1, "valid"), 3, 2)
        for i in range(11):
            x = self.block(x, f"mixed_{i}" if i else "mixed")
        return x.mean((2, 3))


def test_the_network_is_the_graph(network: nn.Module, constants: dict[str, Tensor]) -> None:
    x = torch.randn(2, 3, 139, 139, generator=generator(0, "test"))
    found, expected = network(x), Reference(constants).features(x)
    assert found.shape == (2, 2048)
    assert expected.std() > 0.1  # the signal has come through
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (299, 299), (350, 400)])
def test_images_are_resized_as_clean_fid_does(height: int, width: int) -> None:
    images = pictures(2, height, width)
    planes = [Image.fromarray(plane.numpy().astype(np.float32)) for plane in images.flatten(0, 1)]
    assert {plane.mode for plane in planes} == {"F"}
    resized = [np.asarray(plane.resize((299, 299), Image.Resampling.BICUBIC)) for plane in planes]
    expected = (torch.from_numpy(np.stack(resized)).view(2, 3, 299, 299) - 128) / 128
    # 1e-4 is a hundredth of a byte: positions in large images are rounded to float32
    torch.testing.assert_close(features.inception_input(to_model(images)), expected, rtol=0, atol=1e-4)


def test_it_is_torch_fidelity_s_network(
    network: nn.Module, constants: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = import_peer("torch_fidelity.feature_extractor_inceptionv3")
    weights = {name.replace(".block.", "."): values for name, values in network.state_dict().items()}
    weights |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *_, **__: weights)
    theirs = peer.FeatureExtractorInceptionV3("inception", ["2048"])
    images = pictures(2, 299, 299)
    (expected,) = theirs(images)
    torch.testing.assert_close(
        network(features.inception_input(to_model(images))), expected, rtol=1e-4, atol=1e-4
    )


# DINOv2


def test_dinov2_takes_timm_s_weights_as_timm_does() -> None:
    timm = import_peer("timm")
    name = "vit_small_patch14_dinov2"
    weights = timm.create_model(name, num_classes=0, img_size=518).state_dict()
    draw = generator(0, "test")
    weights = {key: torch.randn(value.shape, generator=draw) / 20 for key, value in weights.items()}
    # the file's size is that of its float32 numbers and a header
    assert 0 < features.DINOV2.size - 4 * sum(value.numel() for value in weights.values()) < 20_000
    ours = features.dinov2(lambda: save(weights)).eval()
    theirs = timm.create_model(name, num_classes=0, img_size=224).eval()
    filtered = import_peer("timm.models.vision_transformer").checkpoint_filter_fn(weights, theirs)
    theirs.load_state_dict(filtered)
    x = torch.randn(2, 3, 224, 224, generator=draw)
    with torch.inference_mode():
        found, tokens = ours(x), theirs.forward_features(x)
    assert found.shape == (2, 384)
    torch.testing.assert_close(found, tokens[:, 0], rtol=1e-4, atol=1e-4)


def test_dinov2_sees_images_as_its_card_says() -> None:
    images = pictures(2, 32, 48) // 4 + 96  # bytes that overshoot are clipped in either pass, by PIL
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for image, found in zip(images, features.dinov2_input(to_model(images)), strict=True):
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        expected = (np.asarray(resized) / 255 - mean) / std
        # PIL rounds to bytes after each of the two passes
        assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 1.5 / 255 / 0.224
    edges = features.dinov2_input(to_model(255 * (pictures(2, 32, 32) // 128)))
    assert edges.amin((0, 2, 3)).numpy() == pytest.approx((0 - mean) / std, abs=1e-5)
    assert edges.amax((0, 2, 3)).numpy() == pytest.approx((1 - mean) / std, abs=1e-5)


def test_without_timm_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(features, "fetch", None)
    with pytest.raises(UserError, match=r"needs timm; pip install 'genssl\[features\]'$"):
        features.pretrained_features("dinov2", CPU, ignore)


# The weights files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "downloads"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[features.WeightsFile]:
    """A file of 3 MB on a server of this computer."""
    content = bytes(range(256)) * 12_000
    (tmp_path / "w.bin").write_bytes(content)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": ignore})
    server = HTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/w.bin"
    yield features.WeightsFile("w.bin", url, hashlib.sha256(content).hexdigest(), len(content))
    server.shutdown()
    server.server_close()


def test_weights_are_downloaded_once(served: features.WeightsFile, cache: Path) -> None:
    ticks: list[tuple[int, int]] = []
    content = features.fetch(served, lambda done, total: ticks.append((done, total)))
    assert hashlib.sha256(content).hexdigest() == served.sha256
    assert ticks[-1] == (2, 2)
    again = features.fetch(dataclasses.replace(served, url="http://127.0.0.1:9/"), ignore)
    assert again == content
    assert [path.name for path in cache.iterdir()] == ["w.bin"]


def test_other_weights_are_refused_and_not_kept(served: features.WeightsFile, cache: Path) -> None:
    for other in ({"sha256": "0" * 64}, {"size": 10}):
        with pytest.raises(
            UserError, match=r"w.bin is not the official file.* put the official one at .*w.bin"
        ):
            features.fetch(dataclasses.replace(served, **other), ignore)
        assert not cache.exists()
    cache.mkdir(parents=True)
    (cache / "w.bin").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"downloads/w.bin is not the official file.*delete it"):
        features.fetch(served, ignore)


def test_offline_it_says_where_the_file_belongs(cache: Path) -> None:
    file = features.WeightsFile("w.bin", "http://127.0.0.1:9/w.bin", "", 1)
    with pytest.raises(UserError) as caught:
        features.fetch(file, ignore)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("cannot download w.bin (")
    assert str(caught.value).endswith(f"; get {file.url} and put it at {cache / 'w.bin'}")


def test_a_feature_space_reads_bytes_in_chunks(
    graph: bytes, network: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = dataclasses.replace(features.INCEPTION, sha256=hashlib.sha256(graph).hexdigest())
    cache.mkdir(parents=True)
    (cache / file.name).write_bytes(graph)
    monkeypatch.setattr(features, "INCEPTION", file)
    monkeypatch.setattr(features, "CHUNK", 2)
    space = features.pretrained_features("inception", CPU, ignore)
    assert (space.name, space.digest) == ("inception", file.sha256)
    images = to_model(pictures(3, 32, 32))
    found = space.encode(images)
    assert (found.shape, found.dtype, found.requires_grad) == ((3, 2048), torch.float32, False)
    torch.testing.assert_close(found, network(features.inception_input(images)), rtol=1e-4, atol=1e-5)
    gray = images[:, :1]
    torch.testing.assert_close(space.encode(gray), space.encode(gray.expand(-1, 3, -1, -1)))


def test_both_are_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spaces(name: str, *_: object) -> FeatureSpace:
        calls.append(name)
        return FeatureSpace(name, torch.flatten, name)

    monkeypatch.setattr(features, "pretrained_features", spaces)
    for name in _run.PRETRAINED:
        assert _run.feature_space(name, 64, "cpu")[1] is None
    assert calls == ["inception", "dinov2"]
