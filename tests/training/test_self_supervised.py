"""Runs of the self-supervised methods: killed and resumed, watched, and on data of every kind."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genssl import checkpoint, run_info
from genssl import config as configs
from genssl.data.augment.views import choose_views
from genssl.errors import UserError
from genssl.eval.knn_eval import knn_eval
from genssl.models import resnet
from genssl.models.build import build
from genssl.models.method import Method
from genssl.models.siamese import Siamese
from genssl.pixels import to_model
from genssl.runtime import generator
from genssl.settings import Config
from genssl.training import loop, monitor, run
from genssl.training.events import EpochEnded, Event, Note, silent
from genssl.training.options import Options
from genssl.training.splits import load_splits

METHODS = ("simsiam", "dssl", "byol", "barlow_twins", "vicreg", "simclr", "moco")
TINY = {
    "encoder": "small", "projector_dim": 16, "projector_hidden": 16, "image_size": 16, "limit": 24,
    "batch_size": 8, "epochs": 3, "knn_every": 2, "sample_every": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrower encoder than the small one; what is killed for real keeps its width."""
    if "slow" not in request.keywords:
        # With fewer channels, convolutions of torch 2.14.1 corrupt memory on CPUs with AVX2 but not AVX-512
        monkeypatch.setitem(resnet.WIDTHS, "small", 8)


def config(method: str, digits: Path, **changes: Any) -> Config:
    predictor = {"predictor_hidden": 8} if method in {"simsiam", "dssl", "byol"} else {}
    queue = {"queue_size": 20} if method == "moco" else {}  # not a multiple of the batch
    return configs.make(method, {**TINY, **predictor, **queue, "data": str(digits), **changes})


def train(config: Config, folder: Path, **options: Any) -> list[Event]:
    events: list[Event] = []
    run.start(config, Options(device="cpu", out=folder, **options), events.append)
    return events


def history(folder: Path) -> list[dict[str, Any]]:
    """The run's records without what depends on the clock."""
    records = [json.loads(line) for line in (folder / run_info.HISTORY).read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in {"seconds", "images_per_second"}} for r in records]


def same_run(first: Path, second: Path) -> None:
    for name in (run_info.MODEL, run_info.STATE):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert set(ours) == set(theirs)
        different = [key for key, value in ours.items() if not torch.equal(value, theirs[key])]
        assert not different
    assert history(first) == history(second)


class Killed(Exception):
    """Stands for a kill: nothing of the run's own code sees it coming."""


def train_and_kill(config: Config, folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until step `at`, saving after every step, and die."""
    real = loop.Training._take_step

    def dying(self: loop.Training, images: Tensor, labels: Any) -> dict[str, Tensor]:
        if self.step == at:
            raise Killed
        return real(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_take_step", dying)
        with pytest.raises(Killed):
            train(config, folder, save_every=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_resumes_to_the_same_end(
    method: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = config(method, digits)
    train(settled, tmp_path / "whole")  # saved at its end alone; the other one after every step at first
    train_and_kill(settled, tmp_path / "cut", 4, monkeypatch)  # three steps an epoch: within the second one
    run.resume(tmp_path / "cut", {}, Options(device="cpu"))
    same_run(tmp_path / "whole", tmp_path / "cut")
    whole = history(tmp_path / "whole")
    assert [record["epoch"] for record in whole] == [1, 2, 3]
    assert ["knn_accuracy" in record for record in whole] == [False, True, True]  # every 2, and the last
    assert all({"output_std", "rankme", "output_scale", "collapsed"} <= set(record) for record in whole)


@pytest.mark.parametrize("method", METHODS)
def test_the_kept_weights_are_the_trained_method(method: str, digits: Path, tmp_path: Path) -> None:
    settled = config(method, digits, epochs=1, optimizer="adam", weight_decay=0.0)
    train(settled, tmp_path / "run")
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded.config == settled
    state = load_file(tmp_path / "run" / run_info.STATE)
    kept = {name: value for name, value in loaded.state_dict().items() if value.is_floating_point()}
    assert all(torch.equal(value, state[f"method.{name}"]) for name, value in kept.items())
    fresh = build(settled).state_dict()
    still = {name for name, value in kept.items() if torch.equal(value, fresh[name]) and value.ndim > 1}
    assert all(name.startswith("target_") for name in still)  # everything else has moved
    features = loaded.features(to_model(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)))
    assert features.shape == (2, 64)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lars"])
def test_a_run_whose_first_step_fails_can_be_cured(
    optimizer: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = config("simsiam", digits, epochs=1, optimizer=optimizer)
    real = loop.Training._forward

    def poisoned(self: loop.Training, images: Tensor, labels: Any) -> dict[str, Tensor]:
        losses = real(self, images, labels)
        return losses if self.step else {name: value * torch.nan for name, value in losses.items()}

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_forward", poisoned)
        with pytest.raises(UserError, match="step 1 gave a loss or gradient that is not finite"):
            train(settled, tmp_path / "cut")
    run.resume(tmp_path / "cut", {}, Options(device="cpu"))
    train(settled, tmp_path / "whole")
    same_run(tmp_path / "whole", tmp_path / "cut")


# What is watched


def constant(method: Method) -> Method:
    """The same output for every image."""
    projector = cast(Siamese, method).projector
    for parameter in projector.parameters():
        parameter.data.zero_()
    for parameter in list(projector.parameters())[-1:]:
        parameter.data.fill_(1.0)  # the bias of the last layer
    return method


@pytest.mark.figures
def test_a_run_that_collapses_says_so_and_goes_on(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "COLLAPSE_AFTER", 2)
    settled = config("vicreg", digits, variance=0.0, covariance=0.0, weight_decay=0.0)
    monkeypatch.setattr(run, "build", lambda config: constant(build(config)))
    events = train(settled, tmp_path / "run")
    records = history(tmp_path / "run")
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert all(record["collapsed"] is True and record["output_std"] < 1e-3 for record in records)
    told = [event.text for event in events if isinstance(event, Note) and "collapsed" in event.text]
    assert len(told) == 1  # not at every epoch
    assert (tmp_path / "run" / "curves.png").exists()
    assert run_info.inspect(tmp_path / "run").finished


@pytest.mark.parametrize(("method", "sees_scale"), [("vicreg", True), ("barlow_twins", False)])
def test_outputs_that_shrink_have_collapsed_where_the_loss_sees_it(
    method: str, sees_scale: bool, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "COLLAPSE_AFTER", 0)
    settled = config(method, digits)
    watch = monitor.Monitor(choose_views(settled), *load_splits(settled, silent), settled)
    outputs = torch.randn(200, 16, generator=generator(0, "test"))
    found = []
    for scale in (1.0, 0.01):
        monkeypatch.setattr(monitor, "extract", lambda *_, scale=scale: scale * outputs)
        found.append(watch.collapse(build(settled), 1))
    healthy, shrunk = found
    assert (healthy["collapsed"], shrunk["collapsed"]) == (False, sees_scale)
    assert shrunk["output_scale"] == pytest.approx(0.01 * healthy["output_scale"], rel=1e-4)
    assert healthy["output_scale"] == pytest.approx(1, abs=0.1)
    assert shrunk["output_std"] == pytest.approx(healthy["output_std"], rel=1e-4)


def test_a_collapse_is_told_again_after_a_recovery(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "COLLAPSE_AFTER", 0)
    spreads, ranks = iter([0.5, 0.05, 0.04, 0.3, 0.9]), iter([9.0, 9.0, 1.5, 9.0, 1.2])
    monkeypatch.setattr(monitor, "output_std", lambda outputs: next(spreads))
    monkeypatch.setattr(monitor, "rankme", lambda outputs: next(ranks))
    events = train(config("simsiam", digits, epochs=5, knn_every=0), tmp_path / "run")
    collapsed = [event.record["collapsed"] for event in events if isinstance(event, EpochEnded)]
    assert collapsed == [False, True, True, False, True]
    told = [event.text for event in events if isinstance(event, Note) and "collapsed" in event.text]
    assert ["std 0.05" in told[0], "std 0.9" in told[1]] == [True, True]
    assert len(told) == 2


def test_no_verdict_is_given_before_the_statistics_have_settled(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "output_std", lambda outputs: 0.01)
    settled = config("simsiam", digits, epochs=3, knn_every=0)
    events = train(settled, tmp_path / "run")
    ended = [event.record for event in events if isinstance(event, EpochEnded)]
    assert not any(record["collapsed"] for record in ended)
    monkeypatch.setattr(monitor, "COLLAPSE_AFTER", ended[1]["step"])
    events = train(settled, tmp_path / "again")
    told = [event.record["collapsed"] for event in events if isinstance(event, EpochEnded)]
    assert told == [False, True, True]


def without_labels(digits: Path, folder: Path) -> Path:
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for file in (digits / part).rglob("*.png"):
            shutil.copy(file, folder / part / f"{file.parent.name}-{file.name}")
    return folder


def test_data_without_labels_train_without_neighbors(digits: Path, tmp_path: Path) -> None:
    data = without_labels(digits, tmp_path / "unlabeled")
    train(config("byol", data, epochs=2, knn_every=1), tmp_path / "run")
    assert not any(name.startswith("knn_") for name in run_info.inspect(tmp_path / "run").metrics)
    for record in history(tmp_path / "run"):
        assert "knn_accuracy" not in record
        assert record["output_std"] > 0


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4]), (3, [3, 4])])
def test_neighbors_are_counted_when_asked(
    every: int, expected: list[int], digits: Path, tmp_path: Path
) -> None:
    train(config("barlow_twins", digits, epochs=4, knn_every=every), tmp_path / "run")
    found = history(tmp_path / "run")
    assert [record["epoch"] for record in found if "knn_accuracy" in record] == expected


def test_features_that_are_no_better_than_without_training_are_said_to_be(
    digits: Path, tmp_path: Path
) -> None:
    settled = config("simsiam", digits, limit=None, epochs=1, learning_rate=1e-9)  # it learns nothing
    events = train(settled, tmp_path / "run")
    (said,) = [event.text for event in events if isinstance(event, Note) and "no better" in event.text]
    info = run_info.inspect(tmp_path / "run")
    watched = {name: value for name, value in info.metrics.items() if name.startswith("knn_")}
    assert set(watched) == {
        "knn_accuracy", "knn_accuracy_untrained", "knn_accuracy_pixels", "knn_images",
    }  # fmt: skip
    assert (watched["knn_images"], watched["knn_accuracy"]) == (
        40,
        history(tmp_path / "run")[-1]["knn_accuracy"],
    )
    for name in ("knn_accuracy", "knn_accuracy_untrained", "knn_accuracy_pixels"):
        assert f"{watched[name]:.1%}" in said
    # as `knn-eval` has them
    fresh = build(settled.updated({"seed": 1})).eval()
    kept = load_splits(settled, silent)
    outcome = knn_eval(fresh, *kept, k=120, tick=lambda done, total: None)
    compared = {row["what"]: row["accuracy"] for row in outcome.values["compared"]}
    assert watched["knn_accuracy_untrained"] == pytest.approx(outcome.values["accuracy"])
    assert watched["knn_accuracy_pixels"] == pytest.approx(compared["raw pixels"])


def test_time_that_ends_with_an_epoch_leaves_an_accuracy_to_judge_by(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.RunInProgress, "_out_of_time", lambda self: self.training.step >= 3)
    train(config("simsiam", digits, epochs=9, knn_every=5), tmp_path / "run")
    metrics = run_info.inspect(tmp_path / "run").metrics
    assert "knn_accuracy" not in history(tmp_path / "run")[-1]  # was not due
    assert {"knn_accuracy", "knn_accuracy_untrained", "knn_accuracy_pixels"} <= set(metrics)


@pytest.mark.parametrize(
    ("own", "untrained", "pixels", "words"),
    [
        (0.9, 0.13, 0.667, None),
        (0.122, 0.130, 0.667, "no better than an untrained encoder or raw pixels"),
        (0.32, 0.130, 0.667, "no better than raw pixels"),
        (0.69, 0.130, 0.667, "no better than raw pixels"),  # within the error of 2,000 images
        (0.70, 0.130, 0.667, None),
        (0.70, 0.8, 0.667, "no better than an untrained encoder:"),
    ],
)
def test_what_is_said_of_features(own: float, untrained: float, pixels: float, words: str | None) -> None:
    found = monitor.baseline_warning(
        {
            "knn_accuracy": own, "knn_accuracy_untrained": untrained, "knn_accuracy_pixels": pixels,
            "knn_images": 2000,
        }
    )  # fmt: skip
    assert (found is None) if words is None else (found is not None and words in found)
    if found is not None:
        assert f"(an untrained encoder {untrained:.1%}, raw pixels {pixels:.1%})" in found
        assert "on 2,000 test images" in found
    assert monitor.baseline_warning({}) is None


@pytest.mark.parametrize("method", METHODS)
def test_losses_of_test_images_are_finite_whatever_the_batch_leaves_over(
    method: str, digits: Path, tmp_path: Path
) -> None:
    # 40 test images in batches of 13 leave one image alone, of which no deviation can be taken
    train(config(method, digits, epochs=1, batch_size=13, sample_every=1), tmp_path / "run")
    (record,) = history(tmp_path / "run")
    assert all(value is not None for value in record.values()), record
    assert "test_loss" in record


def test_looking_changes_nothing(digits: Path, tmp_path: Path) -> None:
    train(config("byol", digits, knn_every=0), tmp_path / "blind")
    train(config("byol", digits, knn_every=1, sample_every=1), tmp_path / "watched")
    ours, theirs = (load_file(tmp_path / name / run_info.STATE) for name in ("blind", "watched"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


# Killed for real
