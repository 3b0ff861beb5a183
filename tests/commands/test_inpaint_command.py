"""`genssl inpaint` on rendered digits: a conditional DDPM, a flow without classes, masks and faults."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import genssl
from genssl.data.loading import load
from genssl.eval.inpaint import _labels, read_mask
from genssl.figures import PADDING
from genssl.models import unet
from genssl.models.unet import Layout

from ..conftest import call
from ..pictures import native_grid

SIDE = 16
FEW = ["--steps", 4, "--jump-length", 2, "--resamplings", 2, "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.LAYOUTS, "tiny", Layout((16, 16), (1, 1), (False, False)))
        yield


def train(folder: Path, method: str, digits: Path, *settings: str) -> Path:
    result = call(
        "train", method, "--data", digits, "--out", folder, "--epochs", 1, "--set", "network=tiny",
        "--image-size", SIDE, "--batch-size", 60, "--device", "cpu", *settings,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def ddpm(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ["timesteps=20", "features_t=3", "conditional=true"]
    folder = tmp_path_factory.mktemp("inpaint") / "ddpm"
    return train(folder, "ddpm", digits, *[word for setting in settings for word in ("--set", setting)])


@pytest.fixture(scope="module")
def flow(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("inpaint") / "flow", "flow", digits)


def inpainted(run: Path, out: Path, *options: object) -> tuple[dict[str, Any], np.ndarray]:
    """The numbers, and the images of the picture by row and column, uint8 (rows, columns, H, W, 3)."""
    result = call("inpaint", run, *FEW, *options, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    rows, columns = values["images"], 2 + values["completions"]
    pixels = native_grid(Image.open(out), rows, columns, SIDE)[PADDING:, PADDING:]
    pitch = SIDE + PADDING
    shown = [[pixels[i * pitch :, j * pitch :][:SIDE, :SIDE] for j in range(columns)] for i in range(rows)]
    return values, np.array(shown)


def write_mask(path: Path, levels: np.ndarray) -> Path:
    Image.fromarray(levels.astype(np.uint8)).save(path)
    return path


def test_known_pixels_are_kept_and_the_picture_shows_it(ddpm: Path, digits: Path, tmp_path: Path) -> None:
    values, shown = inpainted(ddpm, tmp_path / "a.png", "-n", 3, "--completions", 2)
    assert (values["evaluation"], values["mask"], values["filled_share"]) == ("inpaint", "box", 0.25)
    assert (values["class"], values["guidance"]) == ("true label", 0.5)
    # 4 steps, and a jump of 2 steps back from the last level but one
    assert (values["steps"], values["jump_length"], values["resamplings"], values["nfe"]) == (4, 2, 2, 6)
    assert values["known_pixels_exact"] is True
    assert 0 < values["psnr_inside_db"] <= values["psnr_inside_best_db"] < 40
    assert values["std_inside"] > 0
    inside = read_mask("box", SIDE).numpy()
    originals = load(str(digits), "test", image_size=SIDE).take(3, 0).images.permute(0, 2, 3, 1).numpy()
    assert (shown[:, 0] == originals).all()
    assert (shown[:, 1:, ~inside] == originals[:, None, ~inside]).all()
    assert (shown[:, 1, inside] == 128).all()  # the middle of the range
    assert (shown[:, 2, inside] != shown[:, 3, inside]).any()
    errors = ((shown[:, 2:, inside].astype(float) - originals[:, None, inside]) / 128) ** 2
    psnr = 10 * np.log10(4 / errors.mean((2, 3)))  # of bytes: an error of half a level at most
    assert values["psnr_inside_db"] == pytest.approx(psnr.mean(), abs=0.2)
    assert values["psnr_inside_best_db"] == pytest.approx(psnr.max(1).mean(), abs=0.2)
    spread = (shown[:, 2:, inside].astype(float) / 128).var(1, ddof=1).mean() ** 0.5
    assert values["std_inside"] == pytest.approx(spread, rel=0.05)


def test_a_completion_does_not_depend_on_the_batch_or_the_others(flow: Path, tmp_path: Path) -> None:
    _, whole = inpainted(flow, tmp_path / "a.png", "-n", 3, "--completions", 3, "--mask", "left")
    values, again = inpainted(
        flow, tmp_path / "b.png", "-n", 2, "--completions", 2, "--mask", "left", "--batch-size", 3
    )
    assert values["class"] == "none"
    assert "guidance" not in values
    # a product's rounding depends on the batch: one level at the edge of a bin
    assert np.abs(again.astype(int) - whole[:2, :4].astype(int)).max() <= 1
    _, other = inpainted(flow, tmp_path / "c.png", "-n", 2, "--completions", 2, "--mask", "left", "--seed", 1)
    assert (other[:, 0] != again[:, 0]).any()


def test_a_mask_may_be_a_file_and_the_class_another(ddpm: Path, tmp_path: Path) -> None:
    levels = np.zeros((SIDE, SIDE))
    levels[2:5, 3:9] = 255
    mask = write_mask(tmp_path / "m.png", levels)
    values, shown = inpainted(
        ddpm, tmp_path / "a.png", "-n", 2, "--completions", 10, "--mask", mask, "--class", "all"
    )
    assert (values["mask"], values["class"]) == (str(mask), "all")
    assert values["filled_share"] == 18 / SIDE**2
    filled = (shown[:, 2:] != shown[:, :1]).any((0, 1, 4))
    assert not filled[levels == 0].any()
    assert filled[levels == 255].all()
    values, _ = inpainted(ddpm, tmp_path / "b.png", "-n", 1, "--class", "7", "--guidance", 2)
    assert (values["class"], values["guidance"]) == ("7", 2.0)


def test_data_of_other_classes_are_completed_without_a_class(
    ddpm: Path, digits: Path, tmp_path: Path
) -> None:
    for part in ("train", "test"):
        for label, name in ((3, "three"), (8, "eight")):
            folder = tmp_path / "words" / part / name
            folder.mkdir(parents=True)
            for file in (digits / part / str(label)).glob("*.png"):
                (folder / file.name).write_bytes(file.read_bytes())
    values, _ = inpainted(ddpm, tmp_path / "a.png", "-n", 2, "--data", tmp_path / "words")
    assert values["class"] == "none"


def test_each_completion_gets_the_class_of_its_image_or_of_its_column(ddpm: Path, digits: Path) -> None:
    method = genssl.load(str(ddpm))
    images = load(str(digits), "test", image_size=SIDE).take(3, 0)
    assert images.labels is not None
    labels, name = _labels(method, images, None, 2)
    assert labels is not None
    assert name == "true label"
    assert labels.view(3, 2).tolist() == [[label, label] for label in images.labels.tolist()]
    labels, _ = _labels(method, images, "all", 4)
    assert labels is not None
    assert labels.view(3, 4).tolist() == [[0, 1, 2, 3]] * 3


def test_the_masks_by_name() -> None:
    box, left = read_mask("box", 32), read_mask("left", 32)
    assert torch.equal(box.nonzero().amin(0), torch.tensor([8, 8]))
    assert torch.equal(box.nonzero().amax(0), torch.tensor([23, 23]))
    assert box.sum() == 256
    assert left[:, :16].all()
    assert not left[:, 16:].any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("small", "has 8x8 pixels, and the images 16x16"),
        ("black", "is all black"),
        ("white", "is all white"),
        ("text", "cannot read the mask"),
        ("truncated", "cannot read the mask"),
        ("jpeg", "cannot read the mask"),
        ("missing", "no mask "),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(flow: Path, tmp_path: Path, mask: str, message: str) -> None:
    path = tmp_path / f"{mask}.png"
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE))
    write_mask(tmp_path / "whole.png", noise)
    match mask:
        case "small":
            write_mask(path, np.full((8, 8), 255))
        case "black" | "white":
            write_mask(path, np.full((SIDE, SIDE), 0 if mask == "black" else 255))
        case "text":
            path.write_text("a mask")
        case "truncated":
            path.write_bytes((tmp_path / "whole.png").read_bytes()[:120])
        case "jpeg":
            Image.open(tmp_path / "whole.png").save(path, "JPEG")
    result = call("inpaint", flow, "--mask", path, "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flow", ["--class", "7"], "this flow was trained without classes"),
        ("flow", ["--guidance", "1"], "guidance needs a class"),
        ("ddpm", ["--class", "ten"], "no class 'ten'"),
        ("ddpm", ["--steps", "21"], "steps must be from 1 to 20"),
        ("ddpm", ["--steps", "5", "--jump-length", "5"], "a jump of 5 steps needs more than 5"),
        ("vae", [], "inpaint needs a ddpm or a flow, and this is a vae; choose another run"),
    ],
)
def test_what_cannot_be_is_one_line(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, options: list[str], message: str
) -> None:
    run = request.getfixturevalue("vae_run" if name == "vae" else name)
    result = call("inpaint", run, *options, "--device", "cpu", "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_files_in_the_run_are_named_by_the_mask(flow: Path, tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "corner.png", np.eye(SIDE) * 255)
    for options in ((), ("--mask", "left"), ("--mask", mask)):
        result = call("inpaint", flow, "-n", 1, "--completions", 1, *FEW, *options)
        assert result.exit_code == 0, result.output
    names = sorted(path.stem for path in (flow / "eval").glob("inpaint*.json"))
    assert [name.split("-mask-")[-1][:6] for name in names if "-mask-" in name] == ["corner"]
    assert len(names) == 3
    assert any("left" in name for name in names)
