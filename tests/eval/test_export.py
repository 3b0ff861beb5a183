"""Encoders as weights for torchvision: loaded strictly, by the code that the user is given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from genssl import files
from genssl.errors import UserError
from genssl.export.torchvision import torchvision_code, torchvision_interface, torchvision_state
from genssl.pixels import to_model

from .exportable import awake, pixels


def loaded(state: dict[str, torch.Tensor], file: Path) -> Any:
    """torchvision's network with the state, through a file and the code shown."""
    files.write_tensors(file, state, {})
    names: dict[str, Any] = {}
    exec(torchvision_code(state, str(file)), names)
    return names["model"]


@pytest.mark.parametrize(
    ("encoder", "features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048), ("small", 128)]
)
def test_torchvisions_network_gives_our_features(encoder: str, features: int, tmp_path: Path) -> None:
    method = awake("simsiam", encoder=encoder)
    model = loaded(torchvision_state(method), tmp_path / "e.safetensors")
    assert type(model).__module__ == "torchvision.models.resnet" or type(model).__name__ == "SmallResNet"
    assert not model.training
    x = to_model(pixels(3))
    with torch.no_grad():
        expected = method.features(x)
        size = expected.abs().max()
        torch.testing.assert_close(model(x) / size, expected / size, rtol=0, atol=1e-5)
        assert expected.std(0).mean() > 0.01  # it does depend on the images
        torch.testing.assert_close(model(x.flip(0)) / size, expected.flip(0) / size, rtol=0, atol=1e-5)
    assert f"(N, {features})" in torchvision_interface(torchvision_state(method))["outputs"]["features"]
    assert expected.shape == (3, features)


def test_every_tensor_of_torchvision_is_there_but_the_classifier() -> None:
    state = torchvision_state(awake("simsiam", encoder="resnet18"))
    with torch.device("meta"):
        theirs = resnet18().state_dict()
    assert list(state) == [name for name in theirs if not name.startswith("fc.")]
    assert [name for name in state if state[name].shape != theirs[name].shape] == ["conv1.weight"]


def test_a_missing_tensor_does_not_load(tmp_path: Path) -> None:
    state = dict(torchvision_state(awake("simsiam")))
    del state["layer3.0.bn1.running_var"]
    with pytest.raises(RuntimeError, match=r"layer3\.0\.bn1\.running_var"):
        loaded(state, tmp_path / "e.safetensors")


def test_three_stages_are_refused() -> None:
    with pytest.raises(UserError, match="have four stages, and this encoder 3; export it with --format onnx"):
        torchvision_state(awake("simsiam", encoder="compact"))


@pytest.mark.parametrize("method", ["vae", "ddpm"])
def test_what_is_no_encoder_is_refused(method: str) -> None:
    with pytest.raises(UserError, match=f"no network of a {method}'s kind; export it with --format onnx"):
        torchvision_state(awake(method))
