"""The online probe: a linear classifier that learns from the features and changes nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from genssl import config as configs
from genssl import run_info
from genssl.data.augment.views import choose_views
from genssl.errors import UserError
from genssl.models.barlow_twins import BarlowTwins
from genssl.models.build import build
from genssl.models.byol import BYOL
from genssl.models.dssl import DSSL
from genssl.models.moco import MoCo
from genssl.models.simclr import SimCLR
from genssl.models.simsiam import SimSiam
from genssl.models.vicreg import VICReg
from genssl.runtime import generator
from genssl.training.events import silent
from genssl.training.loop import Training
from genssl.training.optim import _adapted
from genssl.training.splits import load_splits

from ..conftest import call
from .siamese_data import linear, tiny, views

KINDS: dict[Any, dict[str, Any]] = {
    SimSiam: {"predictor_hidden": 6}, BYOL: {"predictor_hidden": 6}, DSSL: {"predictor_hidden": 6},
    MoCo: {"queue_size": 12}, SimCLR: {}, BarlowTwins: {}, VICReg: {},
}  # fmt: skip
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_probe_changes_neither_the_loss_nor_another_gradient(kind: Any) -> None:
    images = views(4 if kind is DSSL else 2)
    losses, gradients = [], []
    for has_probe in (False, True):
        method = tiny(kind, **KINDS[kind])
        if has_probe:
            method.add_probe(3)
        terms = method.loss(images, {"labels": LABELS} if has_probe else {})
        terms["loss"].backward()
        losses.append(terms)
        gradients.append({name: p.grad for name, p in method.named_parameters()})
    plain, probed = losses
    assert torch.equal(plain["loss"], probed["loss"])
    assert set(probed) - set(plain) == {"probe_loss", "probe_accuracy"}
    # Three classes from zero weights: log 3, and the first class for all
    torch.testing.assert_close(probed["probe_loss"], torch.tensor(3.0).log())
    assert float(probed["probe_accuracy"]) == pytest.approx(1 / 3)
    assert {"probe.weight", "probe.bias"} == set(gradients[1]) - set(gradients[0])
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None) == (other is None)
        assert gradient is None or torch.equal(gradient, other)


def test_its_gradient_is_that_of_logistic_regression() -> None:
    method = linear(SimSiam, predictor="identity")
    method.add_probe(3)
    with torch.no_grad():
        method.probe.weight.copy_(torch.randn(3, 5)), method.probe.bias.copy_(torch.randn(3))
    x1, x2 = views()
    method.loss((x1, x2), {"labels": LABELS})["loss"].backward()
    features = method.encoder(x2).detach()  # of the last view
    p = F.softmax(method.probe(features), 1).detach()
    error = (p - F.one_hot(LABELS, 3)) / len(LABELS)
    torch.testing.assert_close(method.probe.weight.grad, error.T @ features)
    torch.testing.assert_close(method.probe.bias.grad, error.sum(0))


TRAINING = [
    "train", "simsiam", "--image-size", 16, "--epochs", 2, "--batch-size", 16, "--knn-every", 1,
    "--device", "cpu",
    "--set", "encoder=small", "--set", "projector_dim=16", "--set", "projector_hidden=16",
    "--set", "predictor_hidden=8",
]  # fmt: skip


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / run_info.HISTORY).read_text().splitlines()]


def test_a_run_with_a_probe_has_the_weights_of_one_without(digits: Path, tmp_path: Path) -> None:
    base = [*TRAINING, "--data", digits, "--holdout", 0.2]
    for name, choice in (("plain", "false"), ("probed", "true")):
        result = call(*base, "--out", tmp_path / name, "--set", f"online_probe={choice}")
        assert result.exit_code == 0, result.output
    plain, probed = (load_file(tmp_path / name / run_info.MODEL) for name in ("plain", "probed"))
    assert set(probed) - set(plain) == {"probe.weight", "probe.bias"}
    assert all(torch.equal(value, probed[name]) for name, value in plain.items())
    assert probed["probe.weight"].any()
    first, last = history(tmp_path / "probed")
    # From the images held out, never from the test split
    assert {"probe_loss", "probe_accuracy", "validation_probe_accuracy", "knn_accuracy"} <= set(last)
    assert not any(name.startswith("test_") for name in last)
    assert last["probe_loss"] < first["probe_loss"]
    assert last["loss"] == history(tmp_path / "plain")[-1]["loss"]
    # The weights are loaded as any others
    shown = call("knn-eval", tmp_path / "probed", "--device", "cpu", "--json")
    assert shown.exit_code == 0, shown.output


def test_what_a_probe_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_classes is for online_probe=true"):
        configs.make("simsiam", {"num_classes": 3})
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (i, 2 * i, 3 * i)).save(tmp_path / "images" / f"{i}.png")
    refused = call(*TRAINING, "--data", tmp_path / "images", "--set", "online_probe=true")
    assert refused.exit_code == 2
    assert "has no labels, and online_probe=true needs them; omit it" in refused.stderr


def test_a_probe_is_for_training_alone() -> None:
    method = tiny(SimSiam, predictor_hidden=6).eval()
    method.add_probe(3)
    # Test images may have no labels, and views of them are not what the probe is measured on
    assert set(method.loss(views(), {})) == {"loss"}


@pytest.mark.parametrize("optimizer", ["adam", "lars"])
def test_neither_clipping_nor_lars_counts_a_probe(optimizer: str, digits: Path) -> None:
    weights = []
    for has_probe in (False, True):
        config = configs.make(
            "simsiam",
            {
                "encoder": "small", "projector_dim": 8, "projector_hidden": 8, "predictor_hidden": 4,
                "optimizer": optimizer, "gradient_clip": 0.1, "batch_size": 8, "epochs": 1, "limit": 24,
                "data": str(digits), "image_size": 16, "online_probe": has_probe,
                "num_classes": 10 if has_probe else None,
            },
        )  # fmt: skip
        train, _ = load_splits(config, silent)
        training = Training(build(config), choose_views(config, train.classes), train, config)
        list(training.steps())
        weights.append(training.method.state_dict())
    plain, probed = weights
    assert all(torch.equal(value, probed[name]) for name, value in plain.items())
    assert probed["probe.weight"].any()


def test_lars_takes_a_probe_as_it_is() -> None:
    # In proportion to its length, which is zero at first, it would hardly move
    w, g = torch.full((3, 4), 1e-6), torch.randn(3, 4, generator=generator(0, "test"))
    group = {"trust": 1e-3, "weight_decay": 0.1, "clip": False, "lr": 1.0}
    assert torch.equal(_adapted(w, g, {**group, "is_probe": True}), g)
    assert float(_adapted(w, g, group).abs().max()) < 1e-6


def test_without_the_probe_its_number_of_classes_goes_too() -> None:
    probed = configs.make("simsiam", {"online_probe": True, "num_classes": 10})
    assert probed.updated({"online_probe": False}).model_dump()["num_classes"] is None


def test_a_step_with_a_probe_is_one_graph() -> None:
    method = tiny(SimSiam, predictor_hidden=6)
    method.add_probe(3)
    compiled = torch.compile(method.loss, fullgraph=True, backend="eager")
    ours, theirs = (loss(views(), {"labels": LABELS}) for loss in (compiled, method.loss))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
