"""Folders and archives as people have them: nothing is lost or mixed up without a word."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genssl.data.loading import load

from ..conftest import call
from .test_commands import json_of

Write = Callable[[dict[str, object]], Path]


def picture(seed: int, size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def content(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a folder of files, by name: bytes, or the seed of an image."""
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def to_folder(files: dict[str, object]) -> Path:
        for name, what in files.items():
            file = tmp_path / "set" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(what if isinstance(what, bytes) else content(picture(int(str(what)))))
        return tmp_path / "set"

    return to_folder


def fetch(path: Path, *options: object) -> str:
    """What `data fetch` says, the same when the data are cached."""
    first, again = (call("data", "fetch", path, "--image-size", 8, *options) for _ in range(2))
    assert first.exit_code == again.exit_code == 0, first.output
    assert first.output == again.output
    return first.output


def refused(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    return result.output


def two_classes(*parts: str) -> dict[str, object]:
    names = [f"{part}/{name}/{i}.png" for part in parts for name in ("cat", "dog") for i in range(2)]
    return {name: i for i, name in enumerate(names)}


def test_fetch_says_what_was_read_and_what_was_left_out(write: Write) -> None:
    names = ["1.heic", "2.jxl", "notes.txt", "@eaDir/3.png", "#recycle/4.png", "$RECYCLE.BIN/5.png"]
    path = write(two_classes("training_set", "test_set", "unlabeled") | dict.fromkeys(names, b"x"))
    told = fetch(path)
    assert "set train: 4 images, 2 classes\nset test: 4 images, 2 classes\n" in told
    assert "the train part is training_set, the test part is test_set" in told
    assert "left out, being neither train nor test: unlabeled (4 images)" in told
    assert "1 .heic, 1 .jxl; convert it to PNG or JPEG" in told
    assert "not images: 1 .txt, 3 hidden or of the system" in told
    assert "nothing" not in told


def test_where_nothing_was_left_out_that_is_said(write: Write) -> None:
    assert "  nothing was left out" in fetch(write(two_classes("train", "test")))


def test_fetch_says_what_either_part_lost(tmp_path: Path) -> None:
    wide, square = (np.zeros((20, 20, side, 3), np.uint8) for side in (60, 20))
    labels = np.arange(20) % 2
    file = tmp_path / "wide.npz"
    np.savez(file, x_train=wide, y_train=labels, x_test=square, y_test=labels)
    assert "more than a third of 20 of 20 images" in fetch(file)


def test_a_run_says_what_was_left_out_once(write: Write) -> None:
    path = write(two_classes("train", "test") | {"1.heic": b"x"})
    told = call("data", "preview", path, "--image-size", 8).output
    assert told.count("1 .heic") == 1


@pytest.mark.parametrize("parts", [("learn", "check"), ("train", "dogs"), ("val", "test")])
def test_what_may_be_a_part_is_asked_about(parts: tuple[str, ...], write: Write) -> None:
    message = refused("data", "fetch", write(two_classes(*parts)))
    assert "part" in message
    assert "class" in message


def test_files_without_a_suffix_are_looked_at(write: Write) -> None:
    files = {"a/1": 1, "a/2.jpg_large": 2, "b/photo.001": 3, "b/LICENSE": b"text", "README": b"text"}
    told = fetch(write(files | {"b/4.png": 4, "a/5": b"\0\0\0\x18ftypheic\0\0\0\0"}))
    assert "set train: 3 images, 2 classes\nset test: 1 images" in told
    assert "1 .heic; pip install 'genssl[heif]', or convert it to JPEG" in told
    assert "2 without a suffix" in told


@pytest.mark.parametrize("archive", [False, True])
def test_12_bits_in_16_are_scaled_over_the_data_set(archive: bool, write: Write, tmp_path: Path) -> None:
    dim = np.full((8, 8), 400, np.uint16)
    bright = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
    wide = {f"train/{i}.png": content(Image.fromarray(x)) for i, x in enumerate((dim, bright))}
    path = write(wide | {"test/1.png": content(Image.fromarray(bright)), "train/8.png": 0})
    if archive:
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.add(path, "set")
        path = tmp_path / "set.tar"
    told = fetch(path)
    assert "the 3 images of 16 bits hold values up to 4,095: they are read as images of 12 bits" in told
    images = load(str(path), "train", image_size=8).images
    assert images[0].unique().tolist() == [400 >> 4]
    assert images[1].max() == 255
    assert np.array_equal(images[2].permute(1, 2, 0), np.asarray(picture(0)))


def test_dark_and_blank_images_are_counted(write: Write) -> None:
    blank = content(Image.new("RGBA", (8, 8), (255, 255, 255, 0)))
    told = fetch(write({"1.png": blank, "2.png": blank, "3.png": 3, "4.png": 4}))
    assert "2 of 4 images are of one color" in told
    assert "1.png, 2.png" in told


def test_numbers_of_classes_are_no_pictures(write: Write) -> None:
    mask = content(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3))
    told = fetch(write({f"{i}.png": mask for i in range(3)}))
    assert "no pixel of the 3 images is brighter than 2 of 255" in told


def test_animations_are_counted(write: Write) -> None:
    moving = content(picture(1), "GIF", save_all=True, append_images=[picture(2)])
    assert "1 of 3 images have several frames" in fetch(write({"1.gif": moving, "2.png": 2, "3.png": 3}))


def test_spellings_of_a_class_are_one_and_cases_are_told_of(write: Write) -> None:
    told = fetch(write({"caf\xe9/1.png": 1, "cafe\u0301/2.png": 2, "Dog/3.png": 3, "dog/4.png": 4}))
    assert "3 classes" in told
    assert "2 spellings of a folder are one class, caf\xe9" in told
    assert "classes that differ by case only: Dog and dog" in told


def test_the_names_of_a_zip_are_read_in_the_encoding_that_is_named(write: Write, tmp_path: Path) -> None:
    write({})
    path = tmp_path / "a.zip"
    stand_ins = {b"AA": "\u8868".encode("cp932"), b"BB": "\u30bd".encode("cp932")}
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(4):
            archive.writestr(f"{'AA' if i % 2 else 'BB'}/{i}.bmp", content(picture(i), "BMP"))
    raw = path.read_bytes()
    for stand_in, letter in stand_ins.items():
        raw = raw.replace(stand_in + b"/", letter + b"/")
    path.write_bytes(raw)
    assert "2 classes" in fetch(path)
    assert "4 names are not UTF-8" in fetch(path)
    assert "nothing was left out" in fetch(path, "--zip-encoding", "cp932")
    split = load(str(path), "train", image_size=8, zip_encoding="cp932")
    assert split.classes == ("\u30bd", "\u8868")
    assert "--zip-encoding" in refused("data", "fetch", path, "--zip-encoding", "ascii")


def test_links_in_a_tar_are_followed(write: Write, tmp_path: Path) -> None:
    write({})
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("b/soft.png", tarfile.SYMTYPE, "../a/1.png"), ("a/1.png", None, ""), ("a/2.png", None, ""),
            ("a/again.png", tarfile.LNKTYPE, "a/2.png"),
            ("b/hard.png", tarfile.LNKTYPE, "a/1.png"), ("a/latest", tarfile.SYMTYPE, "2.txt"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            data = content(picture(1 if "1" in name else 2)) if kind is None else b""
            info.type, info.linkname, info.size = kind or tarfile.REGTYPE, target, len(data)
            archive.addfile(info, io.BytesIO(data))
    assert "a train: 4 images, 2 classes" in fetch(tmp_path / "a.tar")
    splits = [load(str(tmp_path / "a.tar"), part, image_size=8) for part in ("train", "test")]
    images = [image.permute(1, 2, 0) for split in splits for image in split.images]
    assert sorted(sum(np.array_equal(a, b) for b in images) for a in images) == [2, 2, 3, 3, 3]


def test_an_lfs_pointer_is_named(write: Write) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    path = write({"a/1.png": 1, "a/2.png": pointer})
    assert "a Git LFS pointer in place of the file; run `git lfs pull`" in refused("data", "fetch", path)
    assert "a Git LFS pointer" in refused("data", "fetch", Path("set/a/2.png"))


def test_a_folder_without_parts_is_a_whole_reference(write: Write, tmp_path: Path) -> None:
    path = write({f"{i}.png": i for i in range(40)})
    few = ["--features", "pixels", "-k", 2, "--resamples", 2, "-n", 20, "--json"]
    with zipfile.ZipFile(tmp_path / "samples.zip", "w") as archive:
        for i in range(20):
            archive.writestr(f"{i}.png", content(picture(100 + i)))
    for samples in (path, tmp_path / "samples.zip"):
        result = call("fidelity", samples, "--data", path, *few)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert (found["real_images"], found["part"], found["train_images"]) == (20, "all", 40)
        assert found["other_images"] == 20
    held_out = call("fidelity", path, "--data", path, *few, "--split", "train")
    assert json.loads(held_out.stdout)["train_images"] == 40


@pytest.mark.parametrize(
    ("names", "setting", "message"),
    [
        ("bd", (), "flips are off, since the classes are named as digits or letters"),
        (("0", "1"), (), "flips are off"),
        (("cat", "dog"), (), "flips are on, since the classes are not named as digits or letters"),
        ("bd", ("--set", "flip=on"), "flips are on, as set"),
        (("cat", "dog"), ("--set", "flip=off"), "flips are off, as set"),
    ],
)
def test_a_run_says_whether_images_are_mirrored(
    names: tuple[str, ...], setting: tuple[str, ...], message: str, write: Write, tmp_path: Path
) -> None:
    folders = [f"{part}/{name}" for part in ("train", "test") for name in names]
    path = write({f"{folder}/{i}.png": i for folder in folders for i in range(4)})
    result = call(
        "train", "simsiam", "--data", path, "--image-size", 8, "--epochs", 1, "--batch-size", 4,
        "--set", "encoder=small", "--set", "projector_dim=8", "--set", "projector_hidden=8",
        "--set", "predictor_hidden=4", "--sample-every", 0, "--knn-every", 0, "--out", tmp_path / "run",
        *setting,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert message in result.output
    found = json_of("knn-eval", tmp_path / "run", "--no-baselines")
    assert found["k"] == 8
    notes = found["notes"]
    assert isinstance(notes, list)
    assert any("k is 8, since there are fewer than 200 train images" in note for note in notes)
    result = call("knn-eval", tmp_path / "run", "-k", 200)
    assert (result.exit_code, "-k must be from 1 to" in result.output) == (2, True)
