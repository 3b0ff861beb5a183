"""Evaluations of representations, as a user types them, on rendered digits."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from genssl import figures, files
from genssl.data.synthetic import render

from ..conftest import call
from .test_commands import json_of

FEW = ["--limit", 60, "--test-limit", 30]


@pytest.fixture(scope="session")
def unlabeled(workplace: Path) -> Path:
    """Digits in one heap."""
    split = render.make("train", count=20)
    for place, image in enumerate(split.images):
        file = workplace / "heap" / f"{place}.png"
        file.parent.mkdir(exist_ok=True)
        figures.one(image).save(file)
    return workplace / "heap"


@pytest.fixture(scope="session")
def odd_classes(workplace: Path) -> Path:
    """Ones and twos to train on, twos and threes to test on; and ones alone."""
    image = figures.one(render.make("train", count=1).images[0])
    for name in ("train/1/a", "train/2/b", "test/2/c", "test/3/d"):
        for folder in ("odd", "alone"):
            file = workplace / folder / f"{name if folder == 'odd' else name.split('/')[0] + '/1/e'}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    return workplace


def test_knn_eval(vae_run: Path) -> None:
    found = json_of("knn-eval", vae_run, "-k", 20, "--temperature", 0.07)
    assert (found["train_images"], found["test_images"], found["k"], found["temperature"]) == (
        120,
        40,
        20,
        0.07,
    )
    assert [row["what"] for row in found["compared"]] == [
        "features of this vae", "raw pixels", "untrained encoder", "always the commonest class",
    ]  # fmt: skip
    assert set(found["accuracy_by_class"]) <= set("0123456789")
    assert found["data_digest"]
    assert found == json.loads((vae_run / "eval" / "knn-eval-k20-temperature0.07.json").read_text())
    for name in ("knn-eval-k20-temperature0.07.png", "knn-eval-k20-temperature0.07-neighbors.png"):
        assert Image.open(vae_run / "eval" / name).size[0] > 300


def test_knn_eval_over_k(vae_run: Path) -> None:
    found = json_of("knn-eval", vae_run, "-k", 20, "-k", 1, "--no-baselines")
    assert found == json.loads((vae_run / "eval" / "knn-eval-no-baselines-k20-1.json").read_text())
    assert found["k"] == 20
    rows = found["accuracy_by_k"]
    assert [row["k"] for row in rows] == [20, 1]
    assert rows[0]["features of this vae"] == pytest.approx(found["accuracy"], abs=1e-6)


def test_knn_eval_of_fewer_images_and_without_baselines(vae_run: Path, tmp_path: Path) -> None:
    chosen = ["-k", 5, *FEW, "--no-baselines", "--out", tmp_path / "k.png"]
    found = json_of("knn-eval", "vae", "--checkpoint", vae_run, *chosen)
    assert (found["train_images"], found["test_images"]) == (60, 30)
    assert len(found["compared"]) == 2
    other = [*chosen[:-1], tmp_path / "other.png"]
    assert json_of("knn-eval", vae_run, *other, "--batch-size", 7)["accuracy"] == found["accuracy"]
    result = call("knn-eval", "vae", "--checkpoint", vae_run, *chosen)
    assert result.exit_code == 0
    for word in ("accuracy", "standard_error", "always the commonest class", "the bank is 60 train images"):
        assert word in result.stdout


@pytest.mark.parametrize("augment", [[], ["--augment"]])
def test_linear_eval(vae_run: Path, tmp_path: Path, augment: list[str]) -> None:
    chosen = ["--epochs", 4, *FEW, *augment]
    found = json_of("linear-eval", vae_run, *chosen)
    name = "linear-eval-augment-epochs4-limit60-test30" if augment else "linear-eval-epochs4-limit60-test30"
    rows = [json.loads(line) for line in (vae_run / "eval" / f"{name}.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert found["accuracy"] == rows[-1]["test_accuracy"]
    assert (found["augmented"], found["epochs"], found["train_images"]) == (bool(augment), 4, 60)
    chosen += ["--out", tmp_path / "l.png"]
    assert json_of("linear-eval", vae_run, *chosen)["accuracy"] == found["accuracy"]
    assert "the last epoch" in call("linear-eval", vae_run, *chosen).stdout
    assert {file.name for file in tmp_path.iterdir()} == {"l.png", "l-confusion-matrix.png"}


def test_features_are_a_file_for_others(vae_run: Path, tmp_path: Path) -> None:
    found = json_of("features", vae_run, "--out", tmp_path / "f.safetensors")
    tensors, metadata = files.read_tensors(tmp_path / "f.safetensors")
    assert (found["images"], found["dimensions"]) == (40, 6)
    assert tensors["features"].shape == (40, 6)
    assert tensors["labels"].tolist() == sorted(tensors["labels"].tolist())  # in the order of the folder
    assert json.loads(metadata["classes"])[0] == "0"
    assert {name: metadata[name] for name in ("run", "part", "weights_sha256", "data_digest")} == {
        name: found[name] for name in ("run", "part", "weights_sha256", "data_digest")
    }
    assert Image.open(tmp_path / "f.png").size[0] > 300


def test_features_of_a_part_beside_the_run_and_in_a_folder(vae_run: Path, tmp_path: Path) -> None:
    json_of("features", vae_run, "--split", "train", "--limit", 10)
    tensors, _ = files.read_tensors(vae_run / "eval" / "features-train-limit10.safetensors")
    assert len(tensors["features"]) == 10
    assert (vae_run / "eval" / "features-train-limit10.png").exists()
    json_of("features", vae_run, "--out", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "features-test.png",
        "features-test.safetensors",
    ]


def test_features_of_images_without_labels(vae_run: Path, unlabeled: Path, tmp_path: Path) -> None:
    found = json_of("features", vae_run, "--data", unlabeled, "--split", "train", "--out", tmp_path)
    (file,) = tmp_path.glob("features-train-data-heap-*.safetensors")  # four digits tell it from other heaps
    tensors, _ = files.read_tensors(file)
    assert set(tensors) == {"features"}
    assert torch.isfinite(tensors["features"]).all()
    assert found["images"] == 18  # of 20, two are held out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["knn-eval", "RUN", "-k", 200], "-k must be from 1 to the number of train images, 120, not 200"),
        (["knn-eval", "RUN", "-k", 0], "Invalid value for '-k'"),
        (["knn-eval", "RUN", "-k", 5, "--temperature", 0], "--temperature must be above 0"),
        (["knn-eval", "RUN", "--limit", 0], "--limit"),
        (["knn-eval", "RUN", "--data", "HEAP"], "has no labels"),
        (["knn-eval", "RUN", "--data", "ODD", "-k", 1], "shows 3, and test images do"),
        (["knn-eval", "RUN", "--data", "ALONE", "-k", 1], "of one class"),
        (["knn-eval", "RUN", "--limit", 1, "-k", 1], "of one class"),
        (["linear-eval", "RUN", "--data", "HEAP"], "has no labels"),
        (["linear-eval", "RUN", "--data", "ODD"], "shows 3, and test images do"),
        (["linear-eval", "RUN", "--epochs", 0], "--epochs"),
        (["linear-eval", "RUN", "--lr", 0], "--lr must be above 0"),
        (["linear-eval", "RUN", "--lr", "nan"], "--lr must be above 0"),
        (["linear-eval", "RUN", "--lr", "inf"], "--lr must be above 0"),
        (["linear-eval", "nobody"], "nobody"),
        (["features", "RUN", "--out", "f.png"], "is no .safetensors file; name one such as f.safetensors"),
        (["features", "RUN", "--split", "both"], "--split"),
        (["features", "RUN", "--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    vae_run: Path, unlabeled: Path, odd_classes: Path, arguments: list[object], message: str
) -> None:
    places = {"RUN": vae_run, "HEAP": unlabeled, "ODD": odd_classes / "odd", "ALONE": odd_classes / "alone"}
    result = call(*[places.get(str(argument), argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line
