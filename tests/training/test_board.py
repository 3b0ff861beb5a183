"""What is written for TensorBoard, read back by TensorBoard's own reader."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genssl import figures
from genssl.config import VAEConfig
from genssl.training.loggers import TensorBoardLogger
from genssl.training.run_folder import RunFolder

SHARED = {
    "epoch": 2, "step": 14, "loss": 3.0, "test_loss": 3.5, "images_per_second": 512.4, "output_std": 0.9,
    "rankme": 12.5, "output_scale": 0.7, "collapsed": False, "knn_accuracy": 0.41,
    "learning_rate": 1e-4, "seconds": 2.5,
}  # fmt: skip
TAGS = {
    "loss/train": 3.0, "loss/test": 3.5, "speed/images_per_second": 512.4, "collapse/output_std": 0.9,
    "collapse/rankme": 12.5, "collapse/output_scale": 0.7, "collapse/collapsed": 0.0,
    "neighbors/accuracy": 0.41, "learning_rate": 1e-4,
    "progress/epoch": 2.0, "progress/seconds": 2.5,
}  # fmt: skip


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = read(folder)
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def write(folder: Path, step: int, records: list[dict[str, Any]], **previews: torch.Tensor) -> None:
    written = opened(folder, step)
    for record in records:
        written.epoch(record, previews)
    written.close(finished=True)


def opened(folder: Path, step: int) -> TensorBoardLogger:
    return TensorBoardLogger(folder, [{"step": step}] if step else [], VAEConfig())


def epochs(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"epoch": n, "step": 7 * n, "loss": float(n), **more} for n in numbers]


def test_every_number_has_its_tag_value_and_step(tmp_path: Path) -> None:
    write(tmp_path, 0, [SHARED])
    found = scalars(tmp_path)
    assert set(found) == set(TAGS)
    for tag, value in TAGS.items():
        ((step, kept),) = found[tag]
        assert step == 14, tag
        assert kept == pytest.approx(value, rel=2**-23), tag  # in fp32


def test_methods_differ_in_their_own_terms_alone(tmp_path: Path) -> None:
    write(tmp_path / "one", 0, [SHARED | {"nll": 2.0, "test_nll": 2.2, "kl": 1.0, "test_kl": 1.3}])
    write(tmp_path / "two", 0, [SHARED | {"loss_low": 0.1, "test_loss_low": 0.2}])
    one, two = set(scalars(tmp_path / "one")), set(scalars(tmp_path / "two"))
    assert one - two == {"nll/train", "nll/test", "kl/train", "kl/test"}
    assert two - one == {"loss_low/train", "loss_low/test"}
    assert one & two == set(TAGS)


def test_what_is_of_a_validation_split_is_called_so(tmp_path: Path) -> None:
    held_out = {"split": "validation", "validation_loss": 3.5}
    write(tmp_path, 0, [{name: value for name, value in SHARED.items() if name != "test_loss"} | held_out])
    measured = (
        "collapse/output_std",
        "collapse/rankme",
        "collapse/output_scale",
        "collapse/collapsed",
        "neighbors/accuracy",
    )
    expected = (set(TAGS) - {"loss/test", *measured}) | {f"{tag}/validation" for tag in ("loss", *measured)}
    assert set(scalars(tmp_path)) == expected


def test_what_is_no_finite_number_is_left_out(tmp_path: Path) -> None:
    odd = {"loss": None, "test_loss": float("nan"), "nll": float("inf"), "remark": "text"}
    write(tmp_path, 0, [*epochs(1), {"epoch": 2, "step": 14, **odd}, *epochs(3)])
    found = scalars(tmp_path)
    assert found["loss/train"] == [(7, 1.0), (21, 3.0)]
    assert set(found) == {"loss/train", "progress/epoch"}


@pytest.mark.parametrize("kind", ["samples", "reconstructions"])
@pytest.mark.parametrize("count", [9, 20])
def test_pictures_are_those_of_the_run_folder_without_header(tmp_path: Path, kind: str, count: int) -> None:
    images = torch.rand(count, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    folder = RunFolder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    folder.write_previews({kind: images}, 3)
    folder.release()
    write(tmp_path, 0, epochs(3), **{kind: images})
    (shown,) = read(tmp_path).Images(kind)
    columns = 8 if kind == "reconstructions" or count > 16 else 3
    assert shown.step == 21
    assert (shown.width, shown.height) == (columns * 6 + 2, -(-count // columns) * 7 + 2)
    with (
        Image.open(io.BytesIO(shown.encoded_image_string)) as ours,
        Image.open(tmp_path / kind / "epoch-003.png") as theirs,
    ):
        assert f"epoch 3: {kind}" in theirs.info["Description"]
        scale = figures.magnification(images, columns)
        assert scale > 1
        grid = np.asarray(theirs)[-scale * shown.height :, : scale * shown.width]
        assert np.array_equal(np.asarray(ours), grid[::scale, ::scale])


def test_a_killed_sitting_keeps_its_epochs(tmp_path: Path) -> None:
    written = opened(tmp_path, 0)
    written.epoch(epochs(1)[0], {})
    assert scalars(tmp_path)["loss/train"] == [(7, 1.0)]  # before anything was closed
    written.close(finished=False)


@pytest.mark.parametrize("clock", [1.0, 0.0, -3600.0], ids=["clock goes on", "stands", "steps back"])
@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "cut off"])
def test_a_resumed_run_has_every_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: float, damaged: bool
) -> None:
    picture = torch.zeros(1, 3, 4, 4)
    write(tmp_path, 0, epochs(1, 2, 3), samples=picture)
    if damaged:
        (last,) = (tmp_path / "tensorboard").iterdir()
        last.write_bytes(last.read_bytes()[:-9])
    now = time.time()
    for sitting, numbers in enumerate([(3, 4, 5), (4, 5, 6)], 1):
        monkeypatch.setattr("time.time", lambda at=now + sitting * clock: at)
        again = [record | {"loss": record["loss"] + 100 * sitting} for record in epochs(*numbers)]
        write(tmp_path, 7 * (numbers[0] - 1), again, samples=picture)
    found = scalars(tmp_path)
    assert found["loss/train"] == [(7, 1.0), (14, 2.0), (21, 103.0), (28, 204.0), (35, 205.0), (42, 206.0)]
    assert [step for step, _ in found["progress/epoch"]] == [7, 14, 21, 28, 35, 42]
    assert [image.step for image in read(tmp_path).Images("samples")] == [7, 14, 21, 28, 35, 42]


def test_an_epoch_cut_short_is_purged(tmp_path: Path) -> None:
    """A run whose time was up has a record within an epoch, which a resumed one does not repeat."""
    write(tmp_path, 0, [*epochs(1), {"epoch": 2, "step": 8, "loss": 9.0}])
    write(tmp_path, 7, epochs(2))
    assert scalars(tmp_path)["loss/train"] == [(7, 1.0), (14, 2.0)]


def test_a_run_begun_anew_in_its_folder_shows_nothing_old(tmp_path: Path) -> None:
    write(tmp_path, 0, epochs(1, 2))
    write(tmp_path, 0, epochs(1))
    assert scalars(tmp_path)["loss/train"] == [(7, 1.0)]
