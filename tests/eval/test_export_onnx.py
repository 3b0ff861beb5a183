"""Networks as ONNX, run by onnxruntime on batches of other sizes than the one that was traced."""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genssl.errors import UserError
from genssl.export import onnx
from genssl.export.onnx import check, choose, require_packages, to_onnx
from genssl.models.ddpm import DDPM
from genssl.models.flow import Flow
from genssl.models.method import Method
from genssl.models.vae import VAE
from genssl.pixels import to_bytes, to_model

from ..peers import import_peer
from .exportable import awake, pixels


def session(content: bytes) -> Any:
    runtime = import_peer("onnxruntime")
    return runtime.InferenceSession(content, providers=["CPUExecutionProvider"])


def exported(method: Method, part: str | None) -> Any:
    for package in onnx.PACKAGES:
        import_peer(package)
    return session(to_onnx(choose(method, part)[1], {"run": "this one"}))


@pytest.fixture(scope="module")
def vae() -> VAE:
    method = awake("vae", image_size=16)
    assert isinstance(method, VAE)
    return method


@pytest.fixture(scope="module")
def decoder(vae: VAE) -> tuple[Any, bytes]:
    """What is exported of the VAE where no part is named, and the file; an export takes seconds."""
    for package in onnx.PACKAGES:
        import_peer(package)
    graph = choose(vae, None)[1]
    return graph, to_onnx(graph, {})


def agree(found: np.ndarray, expected: Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    if len(expected) > 1:
        assert expected.std(0).mean() > 0.01  # it does depend on the input


@pytest.mark.slow
def test_encoder() -> None:
    method = awake("simsiam")
    found = exported(method, None)
    for n in (1, 5):
        images = pixels(n)
        agree(found.run(["features"], {"images": images.numpy()})[0], method.features(to_model(images)))
    assert [(given.type, given.shape) for given in found.get_inputs()] == [
        ("tensor(uint8)", ["batch", 3, 32, 32])
    ]
    assert [given.name for given in found.get_outputs()] == ["features"]
    assert found.get_modelmeta().custom_metadata_map["run"] == "this one"


@pytest.mark.slow
def test_parts_of_a_vae(vae: VAE, decoder: tuple[Any, bytes]) -> None:
    encoder, decode = exported(vae, "encoder"), session(decoder[1])
    for n in (1, 4):
        images = pixels(n, 16)
        posterior = vae.encode(to_model(images))
        mean, logvar = encoder.run(["mean", "logvar"], {"images": images.numpy()})
        agree(mean, posterior.mean)
        assert posterior.logvar is not None
        agree(logvar, posterior.logvar)
        drawn, mode = decode.run(["images", "mean"], {"z": mean})
        agree(mode, vae.reconstruct(to_model(images)))
        assert np.array_equal(drawn, to_bytes(torch.from_numpy(mode)).numpy())
    assert drawn.dtype == np.uint8


@pytest.mark.slow
def test_bytes_out_of_range_are_clamped(decoder: tuple[Any, bytes]) -> None:
    z = 1000 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    drawn, mode = session(decoder[1]).run(["images", "mean"], {"z": z.numpy()})
    assert mode.min() < -2
    assert mode.max() > 2
    assert (drawn[mode > 1] == 255).all()
    assert (drawn[mode < -1] == 0).all()


@pytest.mark.slow
def test_network_of_a_ddpm() -> None:
    ddpm = awake("ddpm", image_size=16)
    assert isinstance(ddpm, DDPM)
    found = exported(ddpm, None)
    for n in (1, 5):
        x, t = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n)), torch.arange(n) * 9
        agree(found.run(["epsilon"], {"x": x.numpy(), "t": t.numpy()})[0], ddpm.network(x, t))
    kept = json.loads(found.get_modelmeta().custom_metadata_map["alphas_cumprod"])
    torch.testing.assert_close(torch.tensor(kept), ddpm.schedule.alphas_cumprod)


@pytest.mark.slow
def test_network_of_classes_and_a_flow() -> None:
    x, labels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 4
    ddpm = awake("ddpm", image_size=16, conditional=True, num_classes=3, prediction="v", loss="mse")
    flow = awake("flow", image_size=16, conditional=True, num_classes=3)
    assert isinstance(ddpm, DDPM)
    assert isinstance(flow, Flow)
    t = torch.arange(5)
    inputs = {"x": x.numpy(), "t": t.numpy(), "labels": labels.numpy()}
    agree(exported(ddpm, None).run(["v"], inputs)[0], ddpm.network(x, t, labels))
    share = torch.linspace(0, 1, 5)
    found = exported(flow, None)
    agree(found.run(["velocity"], {**inputs, "t": share.numpy()})[0], flow.network(x, 1000 * share, labels))
    assert "or 3 for none" in found.get_modelmeta().custom_metadata_map["labels"]
    images = pixels(5, 16)
    found = exported(flow, "encoder")
    agree(found.run(["features"], {"images": images.numpy()})[0], flow.features(to_model(images)))


@pytest.mark.slow
def test_a_graph_that_does_not_run_is_one_line(decoder: tuple[Any, bytes]) -> None:
    graph, content = decoder
    other = replace(graph, inputs={name: rows[:, :-1] for name, rows in graph.inputs.items()})
    with pytest.raises(UserError, match="the exported graph does not run"):
        check(content, other)


@pytest.mark.slow
def test_what_is_not_used_is_not_exported() -> None:
    sizes = []
    for width in (8, 400):
        _, graph = choose(awake("simsiam", projector_hidden=width), None)
        for package in onnx.PACKAGES:
            import_peer(package)
        sizes.append(len(to_onnx(graph, {})))
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_the_check_sees_other_weights(decoder: tuple[Any, bytes]) -> None:
    method = awake("vae", image_size=16)
    graph, content = choose(method, None)[1], decoder[1]
    seen = check(content, graph)
    assert seen["largest_difference"] < 1e-5
    assert seen["inputs"] == {"z": "float32 (N, 6)"}
    assert seen["outputs"] == {"images": "uint8 (N, 3, 16, 16)", "mean": "float32 (N, 3, 16, 16)"}
    with torch.no_grad():
        next(p for name, p in method.named_parameters() if name.startswith("decoder.")).mul_(1.01)
    with pytest.raises(UserError, match="differs from the run by"):
        check(content, graph)


@pytest.mark.parametrize(
    ("method", "part", "known"),
    [
        ("simsiam", "decoder", "encoder"),
        ("ddpm", "encoder", "network"),
        ("vae", "network", "decoder or encoder"),
    ],
)
def test_a_part_that_is_not_there(method: str, part: str, known: str) -> None:
    with pytest.raises(UserError, match=f"a {method} has no {part} to export; use --part {known}"):
        choose(awake(method), part)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in onnx.PACKAGES:
        monkeypatch.setitem(sys.modules, other, sys)  # there, whatever this machine has
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}; install it with: pip install 'genssl\[onnx\]'"):
        require_packages()
