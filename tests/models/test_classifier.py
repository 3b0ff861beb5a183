"""The classifier: its loss against torch's, its crops against torchvision's, its runs on rendered digits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as peer

from genssl import checkpoint, run_info
from genssl import config as configs
from genssl.config import ClassifierConfig
from genssl.data.augment.views import Plain, choose_views, held_out_views
from genssl.data.loading import load
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.models.build import build
from genssl.models.classifier import Classifier
from genssl.models.losses import cross_entropy
from genssl.pixels import to_model
from genssl.runtime import generator
from genssl.training import run
from genssl.training.events import Event, Note
from genssl.training.loop import Training
from genssl.training.options import Options

from ..conftest import call

TINY: dict[str, Any] = {"encoder": "small", "limit": 48, "batch_size": 16, "epochs": 2, "sample_every": 0}


def logits(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    values = scale * torch.randn(8, 5, dtype=torch.float64, generator=generator(0, "test"))
    return values.requires_grad_(), torch.arange(8) % 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("scale", [1.0, 1000.0])  # of exponentials that overflow
def test_the_loss_is_torch_s(smoothing: float, scale: float) -> None:
    values, labels = logits(scale)
    theirs = F.cross_entropy(values, labels, reduction="none", label_smoothing=smoothing)
    ours = cross_entropy(values, labels, smoothing)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    (found,), (expected,) = (
        torch.autograd.grad(loss.sum(), values, retain_graph=True) for loss in (ours, theirs)
    )
    assert torch.allclose(found, expected, atol=1e-12)


def test_the_loss_of_shifted_logits_is_the_same_and_that_of_even_ones_log_k() -> None:
    values, labels = logits()
    assert torch.allclose(cross_entropy(values + 7, labels), cross_entropy(values, labels))
    assert torch.allclose(cross_entropy(torch.zeros(8, 5), labels, 0.3), torch.full((8,), 5.0).log())


def test_in_half_precision_the_loss_is_float32() -> None:
    values, labels = logits()
    assert cross_entropy(values.bfloat16(), labels).dtype == torch.float32


def photos(n: int = 40) -> Tensor:
    return torch.randint(256, (n, 3, 9, 12), dtype=torch.uint8, generator=generator(0, "photos"))


@pytest.mark.parametrize(("padding", "flip"), [(4, "on"), (4, "off"), (0, "on"), (1, "off")])
def test_crops_are_torchvision_s(padding: int, flip: Any) -> None:
    config = ClassifierConfig(crop_padding=padding, flip=flip)
    views, images = choose_views(config), photos()
    draws = views.draws(len(images), generator(0, "views"))
    (ours,) = views(images, draws)
    tops, lefts = (draws["crop"] * (2 * padding + 1)).floor().int().unbind(1)
    for i, image in enumerate(images):
        # The crop is taken from the padded image, or from its mirror image
        turned = peer.horizontal_flip(image) if flip == "on" and draws["flip"][i] < 0.5 else image
        expected = peer.crop(peer.pad(turned, [padding]), int(tops[i]), int(lefts[i]), 9, 12)
        assert torch.equal(ours[i], to_model(expected)), i
    if padding:
        assert {0, 2 * padding} <= set(tops.tolist()) & set(lefts.tolist())


def test_digits_are_not_mirrored_and_held_out_images_are_not_moved() -> None:
    config, images = ClassifierConfig(crop_padding=0), photos()
    of_digits = choose_views(config.updated({"data": "svhn"}))
    of_things = choose_views(config)
    for views, is_mirrored in ((of_digits, False), (of_things, True)):
        (seen,) = views(images, views.draws(len(images), generator(0, "views")))
        assert torch.equal(seen, to_model(images)) is not is_mirrored
    assert isinstance(held_out_views(of_things), Plain)
    standard = choose_views(configs.make("simsiam", {}))
    assert held_out_views(standard) is standard


def test_it_has_the_encoders_of_simsiam() -> None:
    for encoder in ("small", "resnet18"):
        methods: list[Any] = [build(configs.make(m, {"encoder": encoder})) for m in ("classifier", "simsiam")]
        ours, theirs = (method.encoder.state_dict() for method in methods)
        assert {name: value.shape for name, value in ours.items()} == {
            name: value.shape for name, value in theirs.items()
        }
    method = build(configs.make("classifier", {"encoder": "small", "num_classes": 7})).eval()
    assert isinstance(method, Classifier)
    images = to_model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert method.classify(images).shape == (2, 7)
    assert torch.equal(method.head(method.features(images)), method.classify(images))
    assert method.outputs(images) is None  # no verdict on a collapse


def test_it_learns_what_a_color_tells() -> None:
    images = torch.zeros(96, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(96) % 3
    images[torch.arange(96), labels] = 200
    config = ClassifierConfig(
        data="synthetic", image_size=16, num_classes=3, encoder="small", batch_size=32, epochs=12,
        learning_rate=0.02, precision="fp32", label_smoothing=0.1,
    )  # fmt: skip
    split = Split(images, labels, ("r", "g", "b"), "colors", "train", "none")
    training = Training(build(config), choose_views(config), split, config)
    losses = [step.losses for step in training.steps()]
    assert losses[-1]["accuracy"] == 1
    assert losses[0]["loss"] > 1
    # The target (0.933, 0.033, 0.033) has an entropy of 0.29 nats, below which no loss can fall
    assert 0.29 < losses[-1]["loss"] < 0.7


def trained(digits: Path, folder: Path, **changes: Any) -> list[Event]:
    events: list[Event] = []
    config = configs.make("classifier", {**TINY, "data": str(digits), **changes})
    run.start(config, Options(device="cpu", out=folder), events.append)
    return events


def test_a_run_ends_with_the_accuracy_on_all_test_images(digits: Path, tmp_path: Path) -> None:
    events = trained(digits, tmp_path / "run")
    loaded = checkpoint.load(tmp_path / "run")
    assert isinstance(loaded, Classifier)
    assert loaded.class_names == tuple("0123456789")
    test = load(str(digits), "test")
    assert test.labels is not None
    with torch.no_grad():
        share = (loaded.classify(to_model(test.images)).argmax(1) == test.labels).float().mean()
    info = run_info.inspect(tmp_path / "run")
    assert info.metrics["test_accuracy"] == pytest.approx(float(share), abs=1e-6)
    assert "collapsed" not in info.metrics
    lines = (tmp_path / "run" / run_info.HISTORY).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert ["test_accuracy" in record for record in records] == [False, True]  # sample_every is 0
    assert all("accuracy" in record for record in records)
    assert any(isinstance(event, Note) and "flips are off" in event.text for event in events)


def test_a_held_out_share_is_named_validation(digits: Path, tmp_path: Path) -> None:
    trained(digits, tmp_path / "run", holdout=0.25, limit=None, epochs=1, sample_every=1)
    metrics = run_info.inspect(tmp_path / "run").metrics
    assert {"validation_accuracy", "validation_loss"} <= set(metrics)
    assert "test_accuracy" not in metrics


def test_a_stopped_run_resumes_to_the_bit(digits: Path, tmp_path: Path) -> None:
    trained(digits, tmp_path / "whole")
    with pytest.raises(UserError, match="stopped"):
        _stopped(digits, tmp_path / "cut")
    run.resume(tmp_path / "cut", {}, Options(device="cpu"))
    for name in (run_info.MODEL, run_info.STATE):
        ours, theirs = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert set(ours) == set(theirs)
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name


def _stopped(digits: Path, folder: Path) -> None:
    real = run.RunInProgress._after_step

    def dying(self: run.RunInProgress, step: Any) -> None:
        real(self, step)
        if step.step == 4:
            self._stop(130)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.RunInProgress, "_after_step", dying)
        trained(digits, folder)


def test_it_fine_tunes_an_encoder_that_was_trained_without_labels(digits: Path, tmp_path: Path) -> None:
    heads = [word for name in ("dim", "hidden") for word in ("--set", f"projector_{name}=8")]
    few = ["--data", digits, "--limit", 16, "--epochs", 1, "--batch-size", 8, "--device", "cpu"]
    small = ["--set", "encoder=small", "--sample-every", 0]
    other = call("train", "simclr", *few, *small, *heads, "--knn-every", 0, "--out", tmp_path / "simclr")
    assert other.exit_code == 0, other.output
    start: Any = build(configs.make("classifier", {"encoder": "small", "num_classes": 10}))
    left = checkpoint.initialize(start, tmp_path / "simclr")
    assert {name.split(".")[0] for name in left} == {"head", "projector"}
    source = load_file(tmp_path / "simclr" / run_info.MODEL)
    assert torch.equal(start.encoder.conv1.weight, source["encoder.conv1.weight"])
    words = ["train", "classifier", *few, "--sample-every", 0, "--init", tmp_path / "simclr"]
    refused = call(*words, "--out", tmp_path / "a")
    assert refused.exit_code == 2
    assert "has the encoder small, and this is for resnet18; add --set encoder=small" in refused.stderr
    tuned = call(*words, *small, "--out", tmp_path / "b")
    assert tuned.exit_code == 0, tuned.output
    back = call("train", "simclr", *few, *small, "--init", tmp_path / "b", "--out", tmp_path / "c")
    assert back.exit_code == 2
    assert "is a classifier, and a simclr cannot start from it" in back.stderr


def test_knn_and_linear_tables_take_it(digits: Path, tmp_path: Path) -> None:
    trained(digits, tmp_path / "run", epochs=1)
    for words in (["knn-eval", "-k", 5, "--no-baselines"], ["linear-eval", "--epochs", 2]):
        result = call(words[0], tmp_path / "run", *words[1:], "--json", "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert 0 <= json.loads(result.stdout)["accuracy"] <= 1


def test_data_without_labels_and_wrong_settings_are_one_line(digits: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    for part in ("train", "test"):
        (bare / part).mkdir(parents=True)
        for i, file in enumerate(sorted((digits / part).rglob("*.png"))[:12]):
            (bare / part / f"{i}.png").write_bytes(file.read_bytes())
    for words, message in (
        (["--data", bare], "no labels, and a classifier learns them"),
        (["--data", digits, "--set", "label_smoothing=1"], "label_smoothing must be less than 1"),
        (["--data", digits, "--set", "encoder=resnet19"], "encoder must be resnet18"),
        (["--data", digits, "--set", "crop_padding=-1"], "crop_padding must be greater than or equal to 0"),
    ):
        result = call("train", "classifier", *words, "--set", "epochs=1", "--device", "cpu", "--yes")
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.stderr.splitlines() if not line.startswith("reading ")]
        assert message in line
