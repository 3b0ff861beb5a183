import hashlib
import io
import pickle
import socket
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from torchvision.datasets import CIFAR10, SVHN
from torchvision.datasets import utils as torchvision_utils

from genssl.data import cache as cache_module
from genssl.data import official, stream
from genssl.data.cache import split_path
from genssl.data.load import load
from genssl.data.stream import Lazy
from genssl.errors import UserError
from genssl.files import tensor_digest

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (19, 3, 32, 32), np.uint8)
LABELS = np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 3, 10, 7, 10, 9, 1, 2])
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class ShutNetwork:
    """Every download fails; what was asked for is remembered."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.timeouts: list[float | None] = []

    def __call__(self, url: str, *_: object, **__: object) -> NoReturn:
        self.asked.append(url.rpartition("/")[2])
        self.timeouts.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("Name or service not known")


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> ShutNetwork:
    network = ShutNetwork()
    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", network)
    return network


@pytest.fixture
def downloads(cache: Path) -> Path:
    folder = cache / "downloads"
    folder.mkdir(parents=True)
    return folder


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def svhn(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The official layout: X (32, 32, 3, N), y (N, 1) with 10 for the digit zero."""
    table = {}
    for part, rows in (("train", slice(0, 8)), ("test", slice(8, 12)), ("extra", slice(12, 19))):
        file = downloads / f"{part}_32x32.mat"
        x = IMAGES[rows].transpose(2, 3, 1, 0)
        scipy.io.savemat(file, {"X": x, "y": LABELS[rows, None].astype(np.uint8)}, do_compression=True)
        table[part] = [f"http://nowhere.invalid/{file.name}", file.name, md5(file.read_bytes())]
    monkeypatch.setattr(SVHN, "split_list", table)
    return downloads


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def cifar(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The official layout: pickles of {data (N, 3072), labels} and one of the names of the labels."""
    files = {}
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rows = slice(2 * i, 2 * i + 2)
        batch = {"data": IMAGES[rows].reshape(2, -1), "labels": (LABELS[rows] % 10).tolist()}
        files[name] = pickle.dumps(batch, protocol=2)
    files["batches.meta"] = pickle.dumps({"label_names": NAMES}, protocol=2)
    sums = [[name, md5(content)] for name, content in files.items()]
    archive = tarball(files)
    (downloads / "cifar-10-python.tar.gz").write_bytes(archive)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:6])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[6][1]})
    return downloads


@pytest.mark.usefixtures("svhn")
@pytest.mark.parametrize(("part", "rows"), [("train", slice(0, 8)), ("test", slice(8, 12))])
def test_svhn_is_read(part: Any, rows: slice, network: ShutNetwork) -> None:
    found = load("svhn", part)
    assert np.array_equal(found.images.numpy(), IMAGES[rows])
    assert found.labels is not None
    assert found.labels.tolist() == (LABELS[rows] % 10).tolist()
    assert found.classes == tuple("0123456789")
    assert (found.name, found.part) == ("svhn", part)
    assert network.asked == []


@pytest.mark.usefixtures("svhn")
@pytest.mark.parametrize(
    ("part", "rows"), [("train", [*range(8), *range(12, 19)]), ("test", list(range(8, 12)))]
)
def test_the_extra_digits_follow_those_of_train(part: Any, rows: list[int], network: ShutNetwork) -> None:
    found = load("svhn-extra", part)
    assert np.array_equal(found.images.numpy(), IMAGES[rows])
    assert found.labels is not None
    assert found.labels.dtype == torch.int64
    assert found.labels.tolist() == (LABELS[rows] % 10).tolist()
    assert found.classes == tuple("0123456789")
    assert (found.name, found.part) == ("svhn-extra", part)
    assert found.digest == tensor_digest({"images": found.images, "labels": found.labels})
    assert (found.digest == load("svhn", part).digest) == (part == "test")
    assert network.asked == []


@pytest.mark.usefixtures("svhn")
@pytest.mark.parametrize("images", [1, 3, 5, 8, 100])
def test_any_piece_of_joined_arrays_is_the_same(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PIECE", images * 3 * 32 * 32)
    found = load("svhn-extra", "train").images
    assert np.array_equal(found.numpy(), IMAGES[[*range(8), *range(12, 19)]])


@pytest.mark.usefixtures("svhn")
def test_reading_says_how_far_it_is() -> None:
    told: list[tuple[str, int, int | None]] = []
    load("svhn-extra", "train", progress=lambda *what: told.append(what))
    assert told == [
        ("checking and reading train_32x32.mat", 0, None),
        ("checking and reading extra_32x32.mat", 0, None),
        ("converting svhn-extra", 15, 15),
    ]


@pytest.mark.usefixtures("svhn", "cifar")
@pytest.mark.parametrize("name", ["svhn", "svhn-extra", "cifar10"])
def test_where_nothing_can_be_kept_it_is_read_into_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load(name, "train")
    split_path(f"{name}-32", "train").unlink()

    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream, "atomic", full)
    with pytest.warns(UserWarning, match="cannot write to the cache"):
        found = load(name, "train")
    assert found.images.is_contiguous()
    assert np.array_equal(found.images, kept.images)
    assert found.labels is not None
    assert np.array_equal(found.labels, kept.labels)
    assert (found.digest, found.classes, found.name) == (kept.digest, kept.classes, name)


@pytest.mark.usefixtures("svhn")
def test_what_a_killed_conversion_left_makes_room_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = cache / ".svhn-extra-32-train.safetensors.x.tmp"
    left.write_text("half")
    there: list[bool] = []
    write = cache_module.write_rows

    def watched(*given: Any) -> None:
        there.append(left.exists())
        write(*given)

    monkeypatch.setattr(cache_module, "write_rows", watched)
    load("svhn-extra", "train")
    assert there == [False]


def test_images_lie_in_the_order_of_their_shape(svhn: Path, cifar: Path) -> None:
    for name in ("svhn", "svhn-extra", "cifar10"):
        assert load(name, "train").images.is_contiguous()


def test_torchvision_s_arrays_are_not_copied_as_a_whole(svhn: Path, cifar: Path) -> None:
    for name in ("svhn", "svhn-extra", "cifar10"):
        tensors, _ = official.read(name, "train", svhn)
        assert isinstance(tensors["images"], Lazy)
        assert tensors["images"].rows(slice(2, 5)).is_contiguous()


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize(("part", "rows"), [("train", slice(0, 10)), ("test", slice(10, 12))])
def test_cifar10_is_read(part: Any, rows: slice, network: ShutNetwork) -> None:
    found = load("cifar10", part)
    assert np.array_equal(found.images.numpy(), IMAGES[rows])
    assert found.labels is not None
    assert found.labels.tolist() == (LABELS[rows] % 10).tolist()
    assert found.classes == tuple(NAMES)
    assert (found.name, found.part) == ("cifar10", part)
    assert network.asked == []


@pytest.mark.usefixtures("svhn", "cifar")
@pytest.mark.parametrize("name", ["svhn", "svhn-extra", "cifar10"])
def test_it_is_converted_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(name, "train")
    monkeypatch.setattr(official, "READERS", {})
    second = load(name, "train")
    assert first.digest == second.digest
    assert np.array_equal(first.images, second.images)


@pytest.mark.parametrize(
    ("name", "part", "file"),
    [
        ("svhn", "train", "train_32x32.mat"),
        ("svhn", "test", "test_32x32.mat"),
        ("svhn-extra", "train", "train_32x32.mat"),
        ("svhn-extra", "test", "test_32x32.mat"),
        ("svhn-remix", "test", "train_32x32.mat"),
        ("cifar10", "train", "cifar-10-python.tar.gz"),
        ("cifar10", "test", "cifar-10-python.tar.gz"),
    ],
)
def test_without_network_one_line_says_what_to_do(
    name: str, part: Any, file: str, cache: Path, network: ShutNetwork
) -> None:
    with pytest.raises(UserError) as told:
        load(name, part)
    text = str(told.value)
    assert text.startswith(f"cannot download {file} (")
    assert "Name or service not known" in text
    assert text.endswith(f"put it in {cache / 'downloads'}, or use --data synthetic")
    assert "\n" not in text
    assert told.value.code == 1
    assert network.asked == [file]
    assert (cache / "downloads").is_dir()


@pytest.mark.usefixtures("svhn")
def test_a_damaged_file_is_not_read(svhn: Path) -> None:
    file = svhn / "train_32x32.mat"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"train_32x32.mat is damaged .*; replace it, or use --data synthetic"
    ):
        load("svhn", "train")
    assert file.exists()
    assert len(load("svhn", "test")) == 4


def test_damaged_extra_digits_are_not_read(svhn: Path) -> None:
    file = svhn / "extra_32x32.mat"
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match=r"extra_32x32.mat is damaged .*; replace it"):
        load("svhn-extra", "train")
    assert len(load("svhn-extra", "test")) == 4
    assert len(load("svhn", "train")) == 8


def test_missing_extra_digits_are_asked_for(svhn: Path, network: ShutNetwork) -> None:
    (svhn / "extra_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"cannot download extra_32x32.mat .*; put it in"):
        load("svhn-extra", "train")
    assert network.asked == ["extra_32x32.mat"]
    assert sorted(file.name for file in svhn.iterdir()) == ["test_32x32.mat", "train_32x32.mat"]


class Trap:
    """What a pickle of ill will does when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.file), "w")


def test_a_pickle_of_another_md5_is_not_unpickled(cifar: Path, tmp_path: Path) -> None:
    (cifar / "cifar-10-python.tar.gz").write_bytes(
        tarball({"data_batch_1": pickle.dumps(Trap(tmp_path / "t"))})
    )
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz is damaged"):
        load("cifar10", "train")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_an_unpacked_pickle_is_checked_too(cifar: Path, tmp_path: Path, name: str) -> None:
    load("cifar10", "test")
    (cifar / "cifar-10-python.tar.gz").unlink()
    (cifar / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Trap(tmp_path / "t")))
    with pytest.raises(UserError, match="put it in"):
        load("cifar10", "train")
    assert not (tmp_path / "t").exists()


def test_the_beginning_of_a_download_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(url: str, file: str) -> NoReturn:
        Path(file).write_bytes(b"half")
        raise TimeoutError("timed out")

    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(torchvision_utils, "_urlretrieve", break_off)
    with pytest.raises(UserError, match=r"cannot download train_32x32.mat \(timed out\)"):
        load("svhn", "train")
    assert list((cache / "downloads").iterdir()) == []


def test_a_download_that_ends_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(torchvision_utils, "_urlretrieve", lambda _, file: Path(file).write_bytes(b"half"))
    with pytest.raises(UserError, match=r"cannot download train_32x32.mat"):
        load("svhn", "train")


def test_a_download_is_read(svhn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = svhn / "train_32x32.mat"
    content = file.read_bytes()
    file.write_bytes(b"damaged")
    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(torchvision_utils, "_urlretrieve", lambda _, file: Path(file).write_bytes(content))
    told: list[str] = []
    assert len(load("svhn", "train", progress=lambda text, *_: told.append(text))) == 8
    assert told == ["checking and reading train_32x32.mat", "converting svhn"]


def test_the_network_has_a_timeout_for_so_long(network: ShutNetwork) -> None:
    socket.setdefaulttimeout(None)
    with pytest.raises(UserError):
        load("svhn", "train")
    assert network.timeouts == [official.TIMEOUT_SECONDS]
    assert socket.getdefaulttimeout() is None


def test_a_full_disk_is_not_taken_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(official.READERS, "svhn", full)
    with pytest.raises(UserError, match=r"cannot write to .*No space left.*GENSSL_CACHE"):
        load("svhn", "train")


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*GENSSL_CACHE"):
        load("svhn", "train")


def test_torchvision_still_checks_what_it_reads() -> None:
    """The names and tables that the tests above replace are the ones that torchvision has."""
    assert all(len(row[2]) == 32 for row in SVHN.split_list.values())
    assert len(CIFAR10.tgz_md5) == 32
    assert torchvision.datasets.SVHN.split_list["train"][1] == official.file_of("svhn", "train")
    assert torchvision.datasets.SVHN.split_list["test"][1] == official.file_of("svhn", "test")
    assert torchvision.datasets.SVHN.split_list["extra"][1] == official.file_of("svhn", "extra")
    assert torchvision.datasets.CIFAR10.filename == official.file_of("cifar10", "train")
