import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from genssl import runs
from genssl.commands.data import data_fetch
from genssl.config import VAEConfig
from genssl.data import subset
from genssl.data.cache import split_path, write_split
from genssl.data.loading import load
from genssl.data.registry import base_name, is_remix, remix_name, short_name
from genssl.data.split import Split
from genssl.data.subset import remix
from genssl.data.synthetic import render
from genssl.errors import UserError

RANDOM = np.random.default_rng(0)
SIZES = {"train": 150, "test": 60}
LABELS = {"train": RANDOM.integers(0, 4, 150), "test": RANDOM.integers(1, 5, 60)}  # 0 and 4 are in one only


def split_of(part: str) -> Split:
    """Images that all differ, each with the first byte of its part and the second of its label."""
    images = RANDOM.integers(0, 256, (SIZES[part], 3, 4, 4), np.uint8)
    images[:, 0, 0, 0] = part == "test"
    images[:, 0, 0, 1] = LABELS[part]
    images[:, 0, 0, 2] = np.arange(SIZES[part])
    labels = torch.from_numpy(LABELS[part])
    masks = torch.from_numpy(images[:, 0].copy())
    return Split(torch.from_numpy(images), labels, tuple("abcde"), "set", part, f"{part} digest", masks)


TRAIN, TEST = split_of("train"), split_of("test")


def remixed(train: Split = TRAIN, test: Split = TEST) -> tuple[Split, Split]:
    return remix(train, test, "train"), remix(train, test, "test")


def labels_of(split: Split) -> np.ndarray:
    assert split.labels is not None
    return split.labels.numpy()


def content(*splits: Split) -> list[bytes]:
    return sorted(image.numpy().tobytes() for split in splits for image in split.images)


def shuffled(n: int, label: int) -> list[int]:
    """Fisher and Yates with numpy's Mersenne Twister, under the key of the stream (0, "remix", label)."""
    key = hashlib.blake2b(f"0|remix|{label}".encode(), digest_size=8).digest()
    words = np.random.RandomState(int.from_bytes(key, "big") // 2 % 2**32)
    order = list(range(n))
    for i in range(n - 1):
        j = i + int(words.randint(0, 2**32, dtype=np.uint32)) % (n - i)
        order[i], order[j] = order[j], order[i]
    return order


def reference(part: str) -> list[int]:
    """The rows of the pool that a part is made of."""
    pool = [*LABELS["train"], *LABELS["test"]]
    chosen = []
    for label in range(5):
        rows_of_class = [row for row, each in enumerate(pool) if each == label]
        order = [rows_of_class[i] for i in shuffled(len(rows_of_class), label)]
        n_train = int(np.sum(LABELS["train"] == label))
        chosen += order[:n_train] if part == "train" else order[n_train:]
    return sorted(chosen)


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_rows_are_those_of_the_reference_in_the_order_of_the_pool(part: str) -> None:
    found = remix(TRAIN, TEST, part)
    pool = np.concatenate([TRAIN.images, TEST.images])
    assert np.array_equal(found.images, pool[reference(part)])


def test_parts_keep_their_size_and_how_many_of_each_class() -> None:
    for before, after in zip((TRAIN, TEST), remixed(), strict=True):
        assert len(after) == len(before)
        assert np.array_equal(
            np.bincount(labels_of(after), minlength=5), np.bincount(labels_of(before), minlength=5)
        )
        assert (after.name, after.part, after.classes) == ("set-remix", before.part, before.classes)


def test_every_image_is_in_one_part_with_its_label_and_mask() -> None:
    train, test = remixed()
    assert content(train, test) == content(TRAIN, TEST)
    for split in (train, test):
        assert np.array_equal(labels_of(split), split.images[:, 0, 0, 1])
        assert split.masks is not None
        assert torch.equal(split.masks, split.images[:, 0])


def test_both_parts_come_from_both() -> None:
    """Of a class with m of n pooled images in train, a part has about m / n from there: a fair draw."""
    for split in remixed():
        shared = np.isin(labels_of(split), [1, 2, 3])
        share = 1 - split.images[shared, 0, 0, 0].double().mean().item()
        n, pooled = shared.sum(), sum(np.isin(each, [1, 2, 3]).sum() for each in LABELS.values())
        expected = np.isin(LABELS["train"], [1, 2, 3]).sum() / pooled
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_it_is_the_same_every_time_and_independent_of_the_global_generator() -> None:
    torch.manual_seed(1)
    first = remixed()
    torch.manual_seed(2)
    for one, other in zip(first, remixed(), strict=True):
        assert torch.equal(one.images, other.images)
        assert one.digest == other.digest


def test_a_digest_says_sources_and_part() -> None:
    other = Split(TEST.images, TEST.labels, TEST.classes, "set", "test", "another digest")
    digests = {
        split.digest for split in (*remixed(), *remixed(test=other), *remixed(train=other), TRAIN, TEST)
    }
    assert len(digests) == 8


def test_a_large_remix_is_the_same(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    small = remixed()
    monkeypatch.setattr(subset, "LARGE", 100)
    for one, other in zip(small, remixed(), strict=True):
        assert torch.equal(one.images, other.images)
        assert np.array_equal(labels_of(one), labels_of(other))
        assert (one.name, one.part, one.digest) == (other.name, other.part, other.digest)
    assert list(cache.glob("rows-*/split.json"))


@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_are_needed_in_both_parts(part: str) -> None:
    bare = {name: split_of(name) for name in SIZES}
    bare[part] = Split(bare[part].images, None, (), "photos", part, "d")
    with pytest.raises(UserError, match=r"no labels in both parts.*; sort its images .*omit -remix"):
        remix(bare["train"], bare["test"], "train")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("data", "source", "name", "short"),
    [
        ("svhn", "svhn", "svhn-remix", "svhn"),
        ("svhn-remix", "svhn", "svhn-remix", "svhn-remix"),
        ("svhn-extra", "svhn-extra", "svhn-extra-remix", "svhn-extra"),
        ("a/photos.tar.gz", "a/photos.tar.gz", "a/photos.tar.gz-remix", "photos"),
        ("a/photos.tar.gz-remix", "a/photos.tar.gz", "a/photos.tar.gz-remix", "photos-remix"),
        ("photos/", "photos/", "photos-remix", "photos"),
        ("photos/-remix", "photos/", "photos/-remix", "photos-remix"),
        ("-remix", "-remix", "-remix-remix", "-remix"),
        (".", ".", ".-remix", "here"),
        ("/", "/", "/-remix", ""),
    ],
)
def test_names(
    data: str, source: str, name: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert is_remix(data) == (source != data)
    assert base_name(data) == source
    assert remix_name(data) == remix_name(remix_name(data)) == name
    assert short_name(data) == short


def test_a_folder_that_is_called_so_is_no_remix_and_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos-remix").mkdir()
    (tmp_path / "svhn-remix").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_remix("photos-remix")
    assert remix_name("photos-remix") == "photos-remix-remix"
    assert base_name("photos-remix-remix") == "photos-remix"
    assert is_remix("svhn-remix")  # a name goes before a folder, as svhn does
    assert not is_remix("./svhn-remix")


def test_a_run_says_that_its_data_are_remixed() -> None:
    assert runs.run_name(VAEConfig(data="/some/photos.zip-remix"), None) == "vae-photos-remix"
    assert runs.run_name(VAEConfig(data="svhn-remix"), "a") == "vae-svhn-remix-a"


@pytest.fixture
def svhn() -> None:
    for split in (TRAIN, TEST):
        kept = Split(split.images, split.labels, split.classes, "svhn", split.part, split.digest)
        write_split(split_path("svhn-4", split.part), kept)


@pytest.mark.usefixtures("svhn")
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_known_set_is_remixed_whatever_the_seed_of_the_run(part: Literal["train", "test"]) -> None:
    found, other = (load("svhn-remix", part, image_size=4, seed=seed) for seed in (0, 5))
    assert np.array_equal(found.images, remix(TRAIN, TEST, part).images)
    assert torch.equal(found.images, other.images)
    assert found.digest == other.digest != load("svhn", part, image_size=4).digest
    assert found.name == "svhn-remix"


@pytest.mark.usefixtures("svhn")
def test_it_is_fetched_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    data_fetch("svhn-remix", image_size=4)
    told = capsys.readouterr().err
    assert "svhn-remix train: 150 images, 5 classes" in told
    assert "svhn-remix test: 60 images, 5 classes" in told


def test_rendered_digits_keep_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(part: str, *_: object, **__: object) -> Split:
        return {"train": TRAIN, "test": TEST}[part]

    monkeypatch.setattr(render, "make", make)
    found = load("synthetic-remix", "test", image_size=4)
    assert found.masks is not None
    assert torch.equal(found.masks, found.images[:, 0])


@pytest.mark.parametrize("name", ["photos", "photos.zip", "photos.tar.gz"])
def test_a_path_is_remixed(
    name: str, tmp_path: Path, put: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    counts = {"train/a": 6, "train/b": 3, "test/a": 3, "test/b": 4}
    files = {f"{folder}/{i}.png": b"" for folder, n in counts.items() for i in range(n)}
    files = {file: picture(seed) for seed, file in enumerate(files)}
    data = str(put(tmp_path / name, files))
    before = {part: load(data, part) for part in ("train", "test")}
    after = {part: load(f"{data}-remix", part, seed=3) for part in ("train", "test")}
    assert content(*after.values()) == content(*before.values())
    for part, split in after.items():
        assert np.bincount(labels_of(split)).tolist() == [counts[f"{part}/a"], counts[f"{part}/b"]]
        assert content(split) != content(before[part])
        assert split.name == "photos-remix"


def test_a_path_without_parts_is_held_out_by_the_seed_and_remixed(
    tmp_path: Path, put: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    files = {f"{'ab'[i % 2]}/{i}.png": picture(i) for i in range(40)}
    data = str(put(tmp_path / "photos.zip", files))
    train, test = (load(f"{data}-remix", part, seed=1) for part in ("train", "test"))
    assert (len(train), len(test)) == (36, 4)
    assert content(train, test) == content(load(data, "train"), load(data, "test"))
    assert content(test) != content(load(data, "test", seed=1))
    expected = remix(load(data, "train", seed=1), load(data, "test", seed=1), "test")
    assert torch.equal(test.images, expected.images)
    assert test.digest == expected.digest != load(f"{data}-remix", "test", seed=2).digest


def test_bad_files_are_left_out_of_a_remix(
    tmp_path: Path, put: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    files = {f"{'ab'[i % 2]}/{i}.png": picture(i) for i in range(20)}
    data = str(put(tmp_path / "photos", files | {"a/bad.png": b"bad"}))
    with pytest.raises(UserError, match="--skip-bad"):
        load(f"{data}-remix", "train")
    with pytest.warns(UserWarning, match=r"a/bad\.png"):
        assert len(load(f"{data}-remix", "train", skip_bad=True)) == 18


def test_images_alone_cannot_be_remixed(
    tmp_path: Path, put: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    data = put(tmp_path / "photos.zip", {f"{i}.png": picture(i) for i in range(20)})
    with pytest.raises(UserError, match="photos has no labels"):
        load(f"{data}-remix", "train")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("svnh-remix", "did you mean svhn?"),
        ("svhn_remix", "did you mean svhn-remix?"),
        ("no/where-remix", "no such file or folder: no/where; use svhn"),
    ],
)
def test_a_remix_of_nothing_is_told_as_what_is_missing(name: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        load(name, "train")
    assert told in str(error.value)
