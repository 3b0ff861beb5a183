import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genssl.data import image_folder
from genssl.data import subset as selecting
from genssl.data.cache import FORMAT
from genssl.data.decode import decode
from genssl.data.loading import load
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.runtime import generator

Put = Callable[[Path, dict[str, bytes]], Path]
Picture = Callable[..., bytes]


def equal(a: Split, b: Split) -> bool:
    return torch.equal(a.images, b.images) and a.digest == b.digest and a.classes == b.classes


@pytest.mark.parametrize("kind", ["set", "set.tar", "set.tar.gz", "set.tgz", "set.zip"])
def test_every_kind_gives_the_same_split(kind: str, tmp_path: Path, put: Put, tree: dict[str, bytes]) -> None:
    backwards = dict(reversed(tree.items()))  # the order in an archive says nothing
    path = put(tmp_path / kind, backwards)
    for part in ("train", "test"):
        found = load(str(path), part)
        names = [f"svhn/{part}/{digit}/{i}.png" for digit in (2, 10) for i in (0, 1)]
        expected = np.stack([decode(tree[name], 32).transpose(2, 0, 1) for name in names])
        assert np.array_equal(found.images.numpy(), expected)
        assert found.images.dtype == torch.uint8
        assert found.labels is not None
        assert found.labels.tolist() == [0, 0, 1, 1]
        assert found.labels.dtype == torch.int64
        assert (found.classes, found.name, found.part) == (("2", "10"), "set", part)
    assert equal(load(str(path), "train"), load(str(put(tmp_path / "other", tree)), "train"))


def test_a_split_without_parts_is_held_out_by_the_seed(tmp_path: Path, put: Put, picture: Picture) -> None:
    path = put(tmp_path / "pets", {f"{'cat' if i % 2 else 'dog'}/{i:02}.png": picture(i) for i in range(30)})
    train, test = load(str(path), "train", seed=1), load(str(path), "test", seed=1)
    assert (len(train), len(test)) == (27, 3)
    assert len(torch.cat([train.images, test.images]).flatten(1).unique(dim=0)) == 30
    assert equal(test, load(str(path), "test", seed=1))
    other = load(str(path), "test", seed=2)
    assert not torch.equal(test.images, other.images)
    assert len({train.digest, test.digest, other.digest}) == 3
    assert (train.part, test.part) == ("train", "test")


def test_every_image_keeps_its_label(tmp_path: Path, put: Put, picture: Picture) -> None:
    path = put(tmp_path / "pets", {f"{'cat' if i % 2 else 'dog'}/{i:02}.png": picture(i) for i in range(30)})
    for part in ("train", "test"):
        found = load(str(path), part)
        assert found.labels is not None
        for image, label in zip(found.images, found.labels, strict=True):
            source = next(
                i for i in range(30) if np.array_equal(decode(picture(i), 32), image.permute(1, 2, 0))
            )
            assert found.classes[label] == ("cat" if source % 2 else "dog")


def test_images_alone_have_no_labels(tmp_path: Path, put: Put, picture: Picture) -> None:
    path = put(tmp_path / "photos", {f"{i}.png": picture(i) for i in range(11)})
    found = load(str(path), "test")
    assert (len(found), found.labels, found.classes) == (1, None, ())


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_each_class_is_held_out(seed: int) -> None:
    counts = torch.tensor([1, 2, 3, 5, 9, 10, 11, 25, 100])
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    labels = labels[torch.randperm(len(labels), generator=generator(seed, "test"))]
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    everything = Split(images, labels, tuple("abcdefghi"), "a", "all", "d")
    train, test = (image_folder.hold_out(everything, part, seed) for part in ("train", "test"))
    assert train.labels is not None
    assert test.labels is not None
    held_out = test.labels.bincount(minlength=len(counts))
    assert torch.equal(train.labels.bincount(minlength=len(counts)) + held_out, counts)
    assert ((held_out - counts / 10).abs() < 1).all()
    assert (held_out < counts).all()
    assert len(test) == round((len(labels) - 1) / 10)
    assert len(torch.cat([train.images, test.images]).unique(dim=0)) == len(labels)


def test_classes_of_single_images_are_held_out_as_they_come() -> None:
    images = torch.zeros(30, 3, 1, 1, dtype=torch.uint8)
    everything = Split(images, torch.arange(30), tuple(map(str, range(30))), "a", "all", "d")
    assert [len(image_folder.hold_out(everything, part, 0)) for part in ("train", "test")] == [27, 3]


@pytest.mark.parametrize(("n", "test"), [(2, 1), (10, 1), (19, 2), (1000, 100)])
def test_a_tenth_is_held_out(n: int, test: int) -> None:
    everything = Split(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), None, (), "a", "all", "d")
    assert len(image_folder.hold_out(everything, "test", 0)) == test
    assert len(image_folder.hold_out(everything, "train", 0)) == n - test


def test_what_is_held_out_keeps_its_order() -> None:
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1).expand(200, 3, 1, 1)
    everything = Split(images, None, (), "a", "all", "d")
    rows = [image_folder.hold_out(everything, part, 0).images[:, 0, 0, 0] for part in ("train", "test")]
    assert all(torch.equal(row, row.sort().values) for row in rows)
    assert torch.equal(torch.cat(rows).sort().values, images[:, 0, 0, 0])


@pytest.mark.parametrize("large", [False, True])
def test_what_is_held_out_is_selected_and_named_by_the_seed(
    large: bool, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    if large:
        monkeypatch.setattr(selecting, "LARGE", 0)
    images = torch.randint(0, 256, (40, 3, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    everything = Split(images, torch.arange(40) % 2, ("a", "b"), "some", "all", "digest")
    shuffled = torch.randperm(40, generator=generator(7, "hold out"))
    by_class = torch.cat([shuffled[shuffled % 2 == label] for label in (0, 1)])
    test = by_class[torch.tensor([5, 15, 25, 35])]
    train = torch.tensor([row for row in range(40) if row not in test])
    for part, chosen in (("test", test), ("train", train)):
        found, expected = image_folder.hold_out(everything, part, 7), everything.select(chosen.sort().values)
        assert torch.equal(found.images, expected.images)
        assert found.labels is not None
        assert expected.labels is not None
        assert torch.equal(found.labels, expected.labels)
        digest = hashlib.sha256(f"digest|7|{part}|by class".encode()).hexdigest()
        assert (found.classes, found.name, found.part, found.digest) == (("a", "b"), "some", part, digest)
        assert (cache / f"rows-{digest[:16]}-{part}").exists() == large


@pytest.mark.parametrize("kind", ["set", "set.tar"])
def test_the_key_is_a_hash_of_lines(kind: str, tmp_path: Path, put: Put, tree: dict[str, bytes]) -> None:
    path = put(tmp_path / kind, {name: data for name, data in tree.items() if data != b"x"})
    prefix, key = image_folder.cache_keys(path, 32, False)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.png"))
        lines = [
            f"{file.relative_to(path)}|{(file.stat().st_size, file.stat().st_mtime_ns)}" for file in files
        ]
    else:
        lines = [str(path.stat().st_size), str(path.stat().st_mtime_ns)]
    words = ["\n".join([str(path), "32", "False"]), "\n".join([FORMAT, image_folder.READING, *lines])]
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in words]
    assert (prefix, key) == (f"path-{kind[:3]}-{hashes[0]}", f"path-{kind[:3]}-{hashes[0]}-{hashes[1]}")


def test_without_a_key_nothing_is_left_behind(
    tmp_path: Path, put: Put, tree: dict[str, bytes], cache: Path
) -> None:
    path = put(tmp_path / "set", tree)
    split = image_folder.read(path, 32, False)["train"]
    assert not cache.exists()
    assert equal(split, load(str(path), "train"))


def test_a_single_image_is_not_enough_for_two_parts(tmp_path: Path, put: Put, picture: Picture) -> None:
    path = put(tmp_path / "one", {"1.png": picture()})
    assert len(load(str(path), "train")) == 1
    with pytest.raises(UserError, match="no images for the test part"):
        load(str(path), "test")


@pytest.fixture
def spoilt(tmp_path: Path, put: Put, picture: Picture) -> Path:
    files = {f"{part}/a/{i}.png": picture(i) for part in ("train", "test") for i in range(3)}
    files["train/a/3.jpg"] = picture(3, kind="JPEG")[:-200]
    files["train/a/4.png"] = b"hello"
    files["train/a/5.bmp"] = picture(5, kind="BMP")[:60]
    files["train/b/6.png"] = b""
    return put(tmp_path / "spoilt", files)


def test_bad_files_are_counted_and_named_in_one_line(spoilt: Path) -> None:
    with pytest.raises(UserError) as told:
        load(str(spoilt), "train")
    text = str(told.value)
    assert "4 of 10 images" in text
    assert "train/a/3.jpg (truncated), train/a/4.png (not an image), train/a/5.bmp (" in text
    assert "and 1 more" in text
    assert "--skip-bad" in text
    assert "\n" not in text


def test_bad_files_are_left_out_on_demand(spoilt: Path) -> None:
    with pytest.warns(UserWarning, match=r"4 of 10 images .* left out: train/a/3.jpg"):
        found = load(str(spoilt), "train", skip_bad=True)
    assert len(found) == 3
    assert found.classes == ("a",)
    with pytest.raises(UserError, match="--skip-bad"):  # what was kept does not hide them
        load(str(spoilt), "train")


def test_nothing_but_bad_files(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "bad", {"1.png": b"", "2.png": b""})
    with pytest.raises(UserError, match="2 of 2 images"):
        load(str(path), "train", skip_bad=True)


@pytest.mark.parametrize("kind", ["none", "none.tar.gz", "none.zip"])
def test_no_images(kind: str, tmp_path: Path, put: Put) -> None:
    with pytest.raises(UserError, match=r"no images in .*; give train/<class>"):
        load(str(put(tmp_path / kind, {"a/notes.txt": b"hello"})), "train")


def test_the_last_of_two_files_of_one_name_counts(tmp_path: Path, put: Put, picture: Picture) -> None:
    path = put(tmp_path / "a.tar", {"./1.png": b"bad", "2.png": picture(2), "1.png": picture(1)})
    assert len(load(str(path), "train")) + len(load(str(path), "test")) == 2


def test_images_outside_are_told_of(tmp_path: Path, put: Put, picture: Picture) -> None:
    names = ["logo.png", "train/a/1.png", "test/a/1.png"]
    path = put(tmp_path / "set", {name: picture() for name in names})
    with pytest.warns(UserWarning, match=r"1 of 3 images .*: logo.png \(in no part or class\)"):
        assert len(load(str(path), "train")) == 1


def test_all_sizes_and_modes_become_one_tensor(tmp_path: Path, put: Put, picture: Picture) -> None:
    sizes = [(32, 32), (64, 48), (7, 9), (1, 100)]
    path = put(tmp_path / "set", {f"{i}.png": picture(i, size) for i, size in enumerate(sizes)})
    assert load(str(path), "train", image_size=24).images.shape == (3, 3, 24, 24)


def built(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> bool:
    calls: list[int] = []
    read: Any = image_folder.read

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return read(*arguments, **named)

    monkeypatch.setattr(image_folder, "read", counted)
    load(str(path), "train", **options)
    monkeypatch.setattr(image_folder, "read", read)
    return bool(calls)


@pytest.mark.parametrize("kind", ["set", "set.tar.gz"])
def test_what_was_read_is_read_again_only_when_it_changes(
    kind: str, tmp_path: Path, put: Put, tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / kind, tree)
    assert built(path, monkeypatch)
    assert not built(path, monkeypatch)
    assert not built(path, monkeypatch, seed=5)
    assert built(path, monkeypatch, image_size=16)
    assert not built(path, monkeypatch)
    touched = path / "svhn/train/2/0.png" if kind == "set" else path
    os.utime(touched, ns=(1, 1))
    assert built(path, monkeypatch)
    assert not built(path, monkeypatch)


def test_a_file_added_or_removed_is_a_change(
    tmp_path: Path, put: Put, tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, picture: Picture
) -> None:
    path = put(tmp_path / "set", tree)
    assert built(path, monkeypatch)
    put(path, {"svhn/train/2/99.png": picture()})
    assert built(path, monkeypatch)
    (path / "svhn/train/2/99.png").unlink()
    assert built(path, monkeypatch)
    put(path, {"svhn/notes.txt": b"hello"})
    assert not built(path, monkeypatch)


def test_progress_is_reported(tmp_path: Path, put: Put, tree: dict[str, bytes]) -> None:
    told: list[tuple[str, int, int | None]] = []
    load(str(put(tmp_path / "set", tree)), "train", progress=lambda *what: told.append(what))
    assert told == [("reading set", 0, 8), ("reading set", 8, 8)]


def test_nothing_is_unpacked(tmp_path: Path, put: Put, picture: Picture, cache: Path) -> None:
    names = ["../../escaped.png", "/tmp/escaped.png", "a/../b.png"]
    path = put(tmp_path / "a.tar", {name: picture(i) for i, name in enumerate(names)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(str(path), "train")
    found = {file.relative_to(tmp_path).parts[0] for file in tmp_path.rglob("*")}
    assert found == {"a.tar", cache.name}
    files = [file.name for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"]
    assert set(files) == {"images.npy", "labels.npy", "split.json", "sums.npy"}


def test_a_name_that_is_no_text_does_no_harm(tmp_path: Path, put: Put, picture: Picture) -> None:
    folder = os.fsdecode(b"caf\xe9")
    path = put(tmp_path / "set", {f"{part}/{folder}/1.png": picture() for part in ("train", "test")})
    assert load(str(path), "train").classes == ("caf\\xdce9",)
    assert load(str(path.rename(tmp_path / folder)), "train").name
