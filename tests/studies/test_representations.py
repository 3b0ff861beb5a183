"""Studies of self-supervised runs: what is measured of the features, what is said of it, and the figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import Result

from genssl import checkpoint, files, run_info
from genssl.data.loading import load
from genssl.pixels import to_model
from genssl.studies import measures
from genssl.studies.figures import draw_changes, draw_study, title_of
from genssl.studies.measures import Trained, knn, linear, measured
from genssl.studies.results import ArmRuns, Measured, verdict
from genssl.training.run_folder import RunFolder

from ..narrow import given
from .fakes import arm_of, history, run_of, simsiam
from .test_ablate import call

SMALL = ["encoder=small", "projector_dim=16", "projector_hidden=16", "predictor_hidden=8", "image_size=8"]
COMMON = [*(f"--base={setting}" for setting in SMALL), "--epochs", 1, "--batch-size", 60, "--device", "cpu"]
KNN, LINEAR, TRAIN = "knn_accuracy_full", "linear_test_accuracy", "linear_train_accuracy"


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A study of SimSiam with two changes, from the command line; a run of it can be found again."""
    root = tmp_path_factory.mktemp("siamese")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENSSL_CHECKPOINTS", str(root))
        patch.setattr(RunFolder, "write_curves", lambda *_: None)
        result = call(
            "simsiam",
            "--data",
            digits,
            *COMMON,
            "--knn-every",
            1,
            "--no-stopgrad",
            "--no-predictor",
            "--json",
        )
    return root, result


# Measuring


def test_the_study_leaves_a_figure_a_change_and_pure_json(trained: tuple[Path, Result]) -> None:
    root, result = trained
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    folder = root / "ablate-simsiam-digits-stop_gradient-predictor"
    assert json.loads((folder / "ablate.json").read_text()) == found
    pictures = {"ablate.png", "ablate-ranking.png"}
    pictures |= {"ablate-stop_gradient-False.png", "ablate-predictor-identity.png"}
    assert {file.name for file in folder.iterdir()} == {"ablate.json", *pictures}
    assert Image.open(folder / "ablate.png").size[0] > 1000
    assert [row["changes"] for row in found["rows"]] == [
        {},
        {"stop_gradient": False},
        {"predictor": "identity"},
    ]
    for row in found["rows"]:
        (one,) = row["runs"]
        for name in (KNN, LINEAR, TRAIN, "knn_accuracy"):
            assert row["numbers"][name]["mean"] == one["numbers"][name]
            assert 0 <= one["numbers"][name] <= 1
        assert (one["numbers"]["train_images"], one["numbers"]["test_images"]) == (120, 40)
        assert isinstance(one["collapsed"], bool)
        assert "collapsed" not in one["numbers"]
    assert found["rows"][1]["verdict"].startswith("kNN accuracy ")
    assert "percentage points, not resolved); linear accuracy " in found["rows"][1]["verdict"]
    digests = {row["runs"][0]["facts"]["test_digest"] for row in found["rows"]}
    assert digests == {load(found["data"], "test", image_size=8).digest}


def test_neighbors_vote_over_all_that_the_run_was_trained_on(trained: tuple[Path, Result]) -> None:
    root, result = trained
    numbers = json.loads(result.stdout)["rows"][0]["runs"][0]["numbers"]
    method = checkpoint.load(root / "arms" / "simsiam-digits-baseline")
    train, test = (load(method.config.data, part, image_size=8) for part in ("train", "test"))
    bank, queries = (method.features(to_model(split.images)).double() for split in (train, test))
    right = 0
    for query, label in zip(queries, given(test.labels).tolist(), strict=True):
        # with 120 images in the bank, fewer than 200, all of them vote
        weights = (10 * torch.cosine_similarity(query[None], bank)).exp()
        votes = [float(weights[train.labels == c].sum()) for c in range(len(train.classes))]
        right += votes.index(max(votes)) == label
    assert numbers[KNN] == pytest.approx(right / 40, abs=1e-9)


def test_the_probe_ends_with_the_numbers_of_its_curves(trained: tuple[Path, Result]) -> None:
    root, _ = trained
    folder = root / "arms" / "simsiam-digits-baseline"
    found = measured(folder, torch.device("cpu"), lambda event: None)
    for name in (LINEAR, TRAIN):
        curve = found.findings.curves[f"{name}_by_epoch"]
        assert len(curve) == 100
        assert found.findings.numbers[name] == curve[-1]
    kept = files.read_json(folder / measures.KEPT)
    assert kept["weights_sha256"] == run_info.inspect(folder).digest
    assert (
        kept["measures"]["linear"]["linear_test_accuracy_by_epoch"]
        == found.findings.curves[f"{LINEAR}_by_epoch"]
    )


def test_what_was_measured_is_not_measured_again(
    trained: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = trained
    monkeypatch.setattr(measures, "Trained", None)  # not even opened
    found = measured(root / "arms" / "simsiam-digits-baseline", torch.device("cpu"), lambda event: None)
    assert KNN in found.findings.numbers


def test_without_labels_the_reason_is_kept_and_nothing_fails(trained: tuple[Path, Result]) -> None:
    root, _ = trained
    opened = Trained(root / "arms" / "simsiam-digits-baseline", torch.device("cpu"), lambda event: None)
    train, _ = opened.splits
    object.__setattr__(train, "labels", None)
    for measure in (knn, linear):
        found = measure(opened)
        assert list(found) == ["no_accuracy"]
        assert "has no labels" in found["no_accuracy"]
    assert "features" not in vars(opened)  # nothing was encoded for it


def test_a_generative_run_has_no_accuracies(vae_run: Path) -> None:
    opened = Trained(vae_run, torch.device("cpu"), lambda event: None)
    assert knn(opened) == {}
    assert linear(opened) == {}


# Saying


def test_a_verdict_on_accuracies_is_in_percentage_points() -> None:
    base = arm_of("baseline", {}, run_of())
    arm = arm_of("a", {"predictor_hidden": 9}, run_of(numbers={KNN: 0.21, LINEAR: 0.55}))
    assert verdict(base, base) == "the baseline: kNN accuracy 43.2 %, linear accuracy 50.0 %"
    assert verdict(arm, base) == (
        "kNN accuracy 43.2 % -> 21.0 % (-22.2 percentage points, not resolved: one seed); "
        "linear accuracy 50.0 % -> 55.0 % (+5.0 percentage points, not resolved: one seed)"
    )
    other = arm_of("b", {"data": "svhn"}, run_of(numbers={KNN: 0.21}))
    assert "43.2 % -> 21.0 % (not comparable: other data)" in verdict(other, base)


def test_a_verdict_says_that_an_output_collapsed() -> None:
    base = arm_of("baseline", {}, run_of(), run_of())
    arm = arm_of("a", {"stop_gradient": False}, run_of(std=0.0031), run_of(std=0.0029))
    assert "; collapsed: output std 0.003" in verdict(arm, base)
    assert "; collapsed: output std 0.003" in verdict(arm, arm)
    some = arm_of("a", {"stop_gradient": False}, run_of(std=0.0031), run_of(std=0.101))
    assert "; collapsed in 1 of 2 runs: output std 0.0031" in verdict(some, base)
    assert "collapsed" not in verdict(base, base)
    flagged = run_of(std=0.5)
    flagged.history[-1]["collapsed"] = True
    flagged.findings.numbers["rankme"] = 1.04
    assert "collapsed: output std 0.5, rank 1" in verdict(arm_of("a", {}, flagged), base)


@pytest.mark.parametrize(
    ("method", "change", "another"),
    [
        ("barlow_twins", "projector_dim", True),
        ("vicreg", "batch_size", True),
        ("simsiam", "projector_dim", False),
        ("simsiam", "stop_gradient", False),
        ("simsiam", "jitter", True),
        ("dssl", "naive", True),
        ("dssl", "beta", True),
        ("vicreg", "covariance", True),
        ("barlow_twins", "lambd", True),
        ("simclr", "batch_size", True),
        ("moco", "batch_size", False),
        ("moco", "queue_size", True),
    ],
)
def test_settings_that_make_the_loss_another_quantity(method: str, change: str, another: bool) -> None:
    from genssl import config as configs

    arm = arm_of("a", {change: 1}, run_of(configs.make(method, {})))
    assert arm.redefines() == ([change] if another else [])
    other = arm_of("b", {"method": "vae", change: 1}, run_of())
    assert other.redefines() == ["method"]  # which says it all


# Drawing


TITLES = [
    "training loss",
    "kNN accuracy while training",
    "output std: 1 healthy, 0 collapsed",
    "linear probe: train accuracy",
    "linear probe: test accuracy",
    "effective rank of the output (RankMe)",
]


def panels(figure: Any) -> dict[str, Any]:
    return {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}


def test_the_figure_has_its_panels() -> None:
    arms = [arm_of("baseline", {}, run_of()), arm_of("a", {"stop_gradient": False}, run_of(std=0.003))]
    (figure,) = draw_study(arms, "title").values()
    found = panels(figure)
    assert list(found) == TITLES
    assert draw_changes(arms, "title") == {}  # one change: it would be the same figure
    std = found[TITLES[2]]
    assert std.get_ylim() == (0, 1.05)
    dashed = [line for line in std.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [0.1]
    quick = found[TITLES[1]].get_lines()
    assert quick[0].get_xdata().tolist() == [2, 4]
    probe = found[TITLES[4]].get_lines()
    assert probe[0].get_ydata().tolist() == [0.2, 0.4, 0.5]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        "baseline: kNN 43.2 %, linear 50.0 %",
        "a: kNN 43.2 %, linear 50.0 %, collapsed (output std 0.003)",
    ]


def test_an_arm_keeps_its_color_in_the_figure_of_its_change() -> None:
    arms = [
        arm_of(name, {"x": name}, run_of(), run_of(numbers={KNN: 0.5})) for name in ("base", "a=1", "b/c")
    ]
    arms.insert(2, ArmRuns(arms[1].arm.__class__("broken", {"x": 1}), [], ["it broke"]))
    (whole,) = draw_study(arms, "t").values()
    each = draw_changes(arms, "t")
    assert list(each) == ["a-1", "b-c"]

    def colors(figure: Any) -> dict[str, str]:
        lines = figure.legends[0].get_lines()
        return {line.get_label().split(":")[0]: line.get_color() for line in lines}

    assert colors(whole) == {"base": "C0", "a=1": "C1", "b/c": "C3"}
    assert colors(each["b-c"]) == {"base": "C0", "b/c": "C3"}
    bands = panels(whole)[TITLES[0]].collections
    assert len(bands) == 3  # two seeds an arm


def test_what_nobody_measured_has_no_panel() -> None:
    bare = run_of()
    bare.findings.curves.clear()
    for record in bare.history:
        record.pop("knn_accuracy", None)
    (figure,) = draw_study([arm_of("baseline", {}, bare)], "t").values()
    assert list(panels(figure)) == [TITLES[0], TITLES[2], TITLES[5]]


def test_long_names_stay_within_the_figure() -> None:
    arms = [arm_of(f"{place} " + 40 * "long ", {}, run_of(std=0.01)) for place in range(3)]
    (figure,) = draw_study(arms, "t").values()
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_a_loss_of_another_kind_is_marked() -> None:
    arms = [arm_of("baseline", {}, run_of()), arm_of("a", {"crop_scale": 0.5}, run_of())]
    (figure,) = draw_study(arms, "t").values()
    assert next(iter(panels(figure))) == "training loss (not the same quantity)"


def test_a_title_says_what_the_runs_have_in_common() -> None:
    one = run_of(simsiam(encoder="small"))
    assert title_of([one]) == "photos, 500 images, encoder small, 4 epochs"
    other = run_of(simsiam(encoder="resnet18"), train_images=1000)
    assert title_of([one, other]) == "photos, 4 epochs"
    short = Measured(one.info.__class__(Path(), one.info.config, 3, True, {}, ""), history(), one.findings)
    assert title_of([short]).endswith("3 of 4 epochs")
