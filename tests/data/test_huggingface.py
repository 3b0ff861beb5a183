"""Data sets of the Hugging Face hub: parquet files that are written here in its layout, and `datasets`."""

import importlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genssl.data import cache, huggingface, loading, registry
from genssl.data.decode import decode
from genssl.data.loading import load
from genssl.errors import UserError
from tests.narrow import given
from tests.peers import import_peer

Picture = Callable[..., bytes]
CLASSES = ["zebra", "ant", "cat"]  # in the order of the labels


def write(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None] | None,
    image: str = "img",
    label: str = "label",
    described: bool = True,
    classes: Sequence[str] = CLASSES,
) -> Path:
    """A file as `datasets` writes it: a struct of bytes and path, and names of labels in the metadata."""
    pyarrow = import_peer("pyarrow")
    cells = [None if content is None else {"bytes": content, "path": "x.png"} for content in images]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {image: pyarrow.array(cells, kind)}
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if labels is not None:
        columns[label] = pyarrow.array(labels, pyarrow.int64())
        features[label] = {"names": classes, "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if described else None
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=3)
    return path


@pytest.fixture
def hub(tmp_path: Path, picture: Picture) -> Path:
    """A data set of two training files and a test file: images 0 to 7, and 8 to 9."""
    folder = tmp_path / "animals" / "data"
    write(folder / "train-00000-of-00002.parquet", [*map(picture, range(5))], [0, 1, 2, 0, 1])
    write(folder / "train-00001-of-00002.parquet", [*map(picture, range(5, 8))], [2, 0, 1])
    write(folder / "test-00000-of-00001.parquet", [*map(picture, range(8, 10))], [2, 0])
    (folder.parent / "README.md").write_text("hello")
    (folder.parent / "banner.png").write_bytes(picture(99))
    return folder.parent


def expected(picture: Picture, rows: range) -> torch.Tensor:
    return torch.stack([torch.from_numpy(decode(picture(i), 32)).permute(2, 0, 1) for i in rows])


def test_the_layout_of_the_hub(hub: Path, picture: Picture) -> None:
    train, test = load(str(hub), "train"), load(str(hub), "test")
    assert torch.equal(train.images, expected(picture, range(8)))
    assert torch.equal(test.images, expected(picture, range(8, 10)))
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert test.labels is not None
    assert test.labels.tolist() == [2, 0]
    assert train.classes == test.classes == tuple(CLASSES)
    assert (train.name, registry.short_name(str(hub))) == ("animals", "animals")


def test_a_folder_for_each_part_and_a_single_file(hub: Path, tmp_path: Path, picture: Picture) -> None:
    for part in ("train", "validation"):
        write(tmp_path / "other" / "default" / part / "0000.parquet", [*map(picture, range(4))], [0, 1, 2, 0])
    assert len(load(str(tmp_path / "other"), "test")) == 4
    file = str(hub / "data" / "train-00001-of-00002.parquet")
    assert len(load(file, "train")) + len(load(file, "test")) == 3  # held out of this file


def test_without_a_description(tmp_path: Path, picture: Picture) -> None:
    path = write(tmp_path / "x.parquet", [*map(picture, range(4))], [7, 30, 7, 30], described=False)
    assert load(str(path), "train").classes == ("7", "30")
    path = write(tmp_path / "y.parquet", [*map(picture, range(4))], None, described=False)
    assert load(str(path), "train").labels is None


def test_labels_that_are_kept_secret(hub: Path, picture: Picture) -> None:
    write(hub / "data" / "test-00000-of-00001.parquet", [*map(picture, range(3))], [-1, -1, -1])
    assert load(str(hub), "test").labels is None
    assert load(str(hub), "train").labels is not None


def test_parts_that_list_their_classes_in_another_order(hub: Path, picture: Picture) -> None:
    test = hub / "data" / "test-00000-of-00001.parquet"
    write(test, [*map(picture, range(3))], [0, 1, 2], classes=["cat", "zebra", "ant"])
    split = load(str(hub), "test")
    assert [split.classes[i] for i in given(split.labels)] == ["cat", "zebra", "ant"]
    write(test, [*map(picture, range(3))], [0, 1, 2], classes=["cat", "dog", "ant"])
    with pytest.raises(UserError, match="names the classes cat, dog, ant, and another zebra, ant, cat"):
        load(str(hub), "test")


def test_a_label_without_a_class(tmp_path: Path, picture: Picture) -> None:
    path = str(write(tmp_path / "x.parquet", [*map(picture, range(4))], [0, 3, 2, -2]))
    with pytest.raises(UserError, match=r"row 1 of 4 .*its label 3 is none of the 3 classes"):
        load(path, "train")
    with pytest.warns(UserWarning, match="2 of 4 rows .* left out: row 1 .*, row 3 "):
        load(path, "train", skip_bad=True)


def test_images_of_12_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 1024).astype(np.uint16).reshape(32, 32)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    path = str(write(tmp_path / "x.parquet", [buffer.getvalue()] * 4, [0, 1, 2, 0]))
    with pytest.warns(UserWarning, match="the 4 images of 16 bits hold values up to 4,095: .* of 12 bits"):
        train = load(path, "train")
    assert torch.equal(train.images[0, 0], torch.from_numpy((ramp >> 4).astype(np.uint8)))
    assert "of 12 bits" in str(train.notes)


def test_a_higher_limit_of_pixels_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    monkeypatch.setattr(cache, "load_or_build", lambda key, *_, **__: keys.append(key))
    for limit in ("", "2e8"):
        monkeypatch.setenv("GENSSL_MAX_PIXELS", limit)
        loading._load_hub("hf:owner/name", "train", 32, True, "crop", None)
    assert keys[0] != keys[1]


def test_bad_rows(tmp_path: Path, picture: Picture) -> None:
    images = [picture(0), b"no image", None, picture(3), picture(4)]
    path = str(write(tmp_path / "x.parquet", images, [0, 1, 2, 1, None]))
    with pytest.raises(UserError, match=r"row 1 of 5 in .* \(not an image\).*--skip-bad"):
        load(path, "train")
    with pytest.warns(UserWarning, match="3 of 5 rows .* left out: row 1 "):
        train = load(path, "train", skip_bad=True)
    assert "3 of 5 rows" in train.notes[0]
    test = load(path, "test", skip_bad=True)
    assert torch.equal(
        torch.cat([train.images, test.images]).sum(), expected(picture, range(4))[[0, 3]].sum()
    )


def test_messages(hub: Path, tmp_path: Path, picture: Picture) -> None:
    pyarrow = import_peer("pyarrow")
    table = pyarrow.table({"text": ["a", "b"], "n": [1, 2]})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"no column of images among text \(string\), n \(int64\)"):
        load(str(tmp_path / "text.parquet"), "train")
    (tmp_path / "cut.parquet").write_bytes((hub / "data" / "test-00000-of-00001.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut\.parquet is damaged, or no \.parquet file"):
        load(str(tmp_path / "cut.parquet"), "train")
    (tmp_path / "lfs.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="a pointer of Git LFS"):
        load(str(tmp_path / "lfs.parquet"), "train")
    write(hub / "extra-00000-of-00001.parquet", [picture(0)], [0])
    with pytest.raises(UserError, match=r"several data sets \(\., data\)"):
        load(str(hub), "train")
    (hub / "extra-00000-of-00001.parquet").rename(hub / "data" / "extra-00000-of-00001.parquet")
    with pytest.warns(UserWarning, match="splits are left out: extra"):
        load(str(hub), "train")
    (hub / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="has 1 of the 2 files of train"):
        load(str(hub), "train")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"needs pyarrow; pip install 'genssl\[hf\]' installs it"):
        load(str(tmp_path / "x.parquet"), "train")
    with pytest.raises(UserError, match=r"hf:owner/name needs datasets; pip install"):
        load("hf:owner/name", "train")


def test_names_of_the_hub() -> None:
    assert registry.hub_name("hf:uoft-cs/cifar10") == ("uoft-cs/cifar10", None)
    assert registry.hub_name("hf:ufldl-stanford/svhn/full_numbers") == ("ufldl-stanford/svhn", "full_numbers")
    assert registry.short_name("hf:ufldl-stanford/svhn") == "svhn"
    assert registry.base_name("hf:a/b-remix") == "hf:a/b"
    for odd in ("hf:", "hf:name", "hf:a/b/c/d", "hf:a/ b"):
        with pytest.raises(UserError, match="write hf:OWNER/NAME"):
            registry.require(odd)


@pytest.fixture
def datasets(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The library, which finds the files of `hub` under hf:owner/animals, and no network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    module = import_peer("datasets")
    load_dataset = module.load_dataset
    monkeypatch.setattr(module.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface, "require_answer", lambda url: None)
    monkeypatch.setattr(module, "get_dataset_config_names", lambda name: ["default"])
    monkeypatch.setattr(
        module, "load_dataset",
        lambda name, config: load_dataset(str(hub), cache_dir=str(tmp_path / "arrow")),
    )  # fmt: skip
    return module


def test_the_library_gives_what_the_files_hold(
    datasets: Any, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub / "banner.png").unlink()
    for part in ("train", "test"):
        of_hub = load("hf:owner/animals", part)
        of_files = load(str(hub), part)
        assert (of_hub.digest, of_hub.classes, of_hub.name) == (of_files.digest, of_files.classes, "animals")
    monkeypatch.setattr(datasets, "load_dataset", None)  # is not needed again
    assert len(load("hf:owner/animals", "test")) == 2
    assert "hf:owner/animals" in [entry.name for entry in registry.catalog()]


def test_a_hub_that_cannot_be_reached(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str) -> None:
        raise TimeoutError("no answer within 10 s")

    monkeypatch.setattr(huggingface, "require_answer", unreachable)
    with pytest.raises(UserError, match="cannot get hf:owner/animals from the Hugging Face hub") as caught:
        load("hf:owner/animals", "train")
    assert "\n" not in str(caught.value)
    assert caught.value.code == 1


def test_several_configurations(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["small", "large"])
    with pytest.raises(UserError, match="name one of them: hf:owner/animals/small"):
        load("hf:owner/animals", "train")
    assert len(load("hf:owner/animals/small", "train")) == 8
    assert huggingface._config(datasets, "ufldl-stanford/svhn") == "cropped_digits"
