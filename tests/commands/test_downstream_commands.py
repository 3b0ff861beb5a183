"""`genssl segment` and `genssl probe` on rendered digits, as a user types them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from genssl import figures
from genssl.data.synthetic import render
from genssl.models import unet
from genssl.models.unet import Layout

from ..conftest import call
from .test_commands import json_of

FEW = ["--members", 2, "--steps", 8, "--draws", 2, "--labeled", 6, "--test-limit", 6, "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.LAYOUTS, "tiny", Layout((16, 16), (1, 1), (False, False)))
        yield


@pytest.fixture(scope="module")
def masked(workplace: Path) -> Path:
    """Rendered digits with their masks: 12 to draw from, 6 to test on."""
    folder = workplace / "masked"
    parts: list[tuple[Literal["train", "test"], int]] = [("train", 12), ("test", 6)]
    for part, count in parts:
        split = render.make(part, count=count)
        assert split.masks is not None
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for i, (image, mask) in enumerate(zip(split.images, split.masks, strict=True)):
            figures.one(image).save(folder / part / "images" / f"{i}.png")
            figures.one(mask[None]).save(folder / part / "masks" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def ddpm(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downstream") / "ddpm"
    result = call(
        "train", "ddpm", "--data", digits, "--out", folder, "--epochs", 1, "--set", "network=tiny",
        "--set", "timesteps=20", "--set", "features_t=3", "--batch-size", 60, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def test_segment(ddpm: Path, vae_run: Path, masked: Path) -> None:
    options = [*FEW, "--labeled", 4, "--data", masked, "--beside", vae_run, "--classes", "all"]
    values = json_of("segment", ddpm, *options)
    assert (values["labeled"], values["repeats"], values["test_images"], values["classes"]) == (6, 2, 6, 11)
    # as noisy as 50 and 150, and its last time, which is less noisy than 250 of 1,000
    assert (values["blocks"], values["times"]) == ([1, 2], [7, 19])
    rows = values["compared"]
    names = ["ddpm", "untrained ddpm", "vae", "raw pixels", "raw pixels, 3x3"]
    assert [(row["what"], row["labeled"]) for row in rows] == [(name, n) for name in names for n in (6, 4)]
    assert [row["dimensions"] for row in rows[::2]] == [64, 64, 8 + 16 + 32 + 64, 3, 27]
    assert all(0 < row["mean_iou"] < row["pixel_accuracy"] < 1 for row in rows)
    table = values["iou_by_class"]
    assert [row["class"] for row in table] == ["ground", *"123456789", "10"]
    cells = values["iou_by_block_and_time"]
    assert [(cell["time"], cell["block"]) for cell in cells] == [(t, b) for t in (7, 19) for b in (1, 2)]
    files = sorted(file.name for file in (ddpm / "eval").glob("segment-*.png"))
    assert len(files) == 3
    (file,) = (ddpm / "eval").glob("segment-*.json")
    assert json.loads(file.read_text()) == values
    again = json_of("segment", ddpm, *options)
    assert [values.pop("seconds"), again.pop("seconds")] != [0, 0]
    assert again == values


def test_segment_of_chosen_blocks_and_times_and_of_ground_alone(
    ddpm: Path, masked: Path, tmp_path: Path
) -> None:
    options = [*FEW, "--data", masked, "--out", tmp_path / "s.png", "--times", "0,7"]
    values = json_of("segment", ddpm, *options, "--blocks", "2", "--no-heat-map")
    assert (values["classes"], values["blocks"], values["times"]) == (2, [2], [0, 7])
    assert values["compared"][0]["dimensions"] == 32
    assert {file.name for file in tmp_path.iterdir()} == {"s.png", "s-mean-IoU.png"}
    assert (
        "--classes all tells them apart"
        in call("segment", ddpm, *options, "--blocks", "2", "--no-heat-map").stdout
    )


def test_the_masks_of_rendered_digits_are_read(
    vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(render, "TRAIN_IMAGES", 20)
    monkeypatch.setattr(render, "TEST_IMAGES", 8)
    options = [*FEW, "--data", "synthetic", "--draws", 1, "--classes", "all", "--out", tmp_path / "s.png"]
    values = json_of("segment", vae_run, *options)
    assert [row["class"] for row in values["iou_by_class"]] == ["ground", *"0123456789"]
    assert (values["train_images"], values["test_images"], values["times"], values["std"]) == (
        20,
        6,
        [],
        None,
    )
    # A row of the picture is two test images: image, mask, predicted, disagreement
    shown = np.array(Image.open(tmp_path / "s.png"))
    for color in ((31, 119, 180), (0, 0, 0)):
        assert (shown == color).all(2).sum() > 50
    # An ensemble of one never disagrees
    json_of("segment", vae_run, *options[:-1], tmp_path / "t.png", "--members", 1)


@pytest.fixture(scope="module")
def unlabeled(workplace: Path) -> Path:
    """Digits in one heap, without masks and labels."""
    folder = workplace / "downstream-heap"
    folder.mkdir()
    for i, image in enumerate(render.make("train", count=20).images):
        figures.one(image).save(folder / f"{i}.png")
    return folder


def test_probe(vae_run: Path, ddpm: Path) -> None:
    options = ["--label-fractions", "0.2,1", "--label-fractions", 0.5, "--epochs", 3, "--draws", 2]
    values = json_of("probe", vae_run, *options, "--beside", ddpm, "-k", 30, "--no-baselines")
    rows = values["compared"]
    expected = [(name, fraction) for name in ("vae", "ddpm") for fraction in (0.2, 1, 0.5)]
    assert [(row["what"], row["fraction"]) for row in rows] == expected
    assert values["draws"] == 2
    assert rows[1]["labeled"] == 120
    assert "k is" in str(values["notes"])
    (file,) = (vae_run / "eval").glob("probe-*.json")
    assert json.loads(file.read_text()) == values
    assert Image.open(file.with_suffix(".png")).size[0] > 300
    whole = json_of("linear-eval", vae_run, "--epochs", 3)
    assert rows[1]["linear_accuracy"] == pytest.approx(whole["accuracy"], abs=1e-6)
    near = json_of("knn-eval", vae_run, "-k", 30, "--no-baselines")
    assert rows[1]["knn_accuracy"] == pytest.approx(near["accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "VAE", "--data", "HEAP"], "train images of downstream-heap have no masks"),
        (["segment", "VAE"], "have no masks; take --data synthetic, or a folder"),
        (["segment", "VAE", "--data", "MASKED", "--labeled", 13], "--labeled must be at most the number"),
        (["segment", "VAE", "--data", "MASKED", *FEW, "--blocks", 5], "blocks must be from 1 to 4, not 5"),
        (["segment", "VAE", "--data", "MASKED", *FEW, "--blocks", 0], "blocks must be from 1 to 4, not 0"),
        (
            ["segment", "DDPM", "--data", "MASKED", *FEW, "--times", 20],
            "times must be whole, from 0 to 19, not 20",
        ),
        (["segment", "DDPM", "--data", "MASKED", "--times", "x"], "--times takes numbers"),
        (["segment", "DDPM", "--data", "MASKED", "--beside", "DDPM"], "is measured already"),
        (["segment", "DDPM", "--draws", 0], "--draws"),
        (["segment", "VAE", "--data", "MASKED", *FEW, "--times", 5], "without noise; omit --times"),
        (["probe", "VAE", "--data", "HEAP"], "has no labels"),
        (["probe", "VAE", "--label-fractions", "0.1,1.5"], "at most 1, not 1.5"),
        (["probe", "VAE", "--label-fractions", "-1"], "above 0 and at most 1, not -1"),
        (["probe", "VAE", "--label-fractions", "some"], "not 'some'"),
        (["probe", "VAE", "--beside", "nobody"], "nobody"),
        (["probe", "VAE", "-k", 0], "'-k'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    vae_run: Path, ddpm: Path, masked: Path, unlabeled: Path, arguments: list[object], message: str
) -> None:
    places = {"VAE": vae_run, "DDPM": ddpm, "MASKED": masked, "HEAP": unlabeled}
    result = call(*[places.get(str(argument), argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line
