import hashlib
import io
import pickle
import shutil
import socket
import tarfile
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
from genssl.data import torchvision_sets
from genssl.data.cache import LazyArray, split_path
from genssl.data.loading import load
from genssl.data.registry import short_name
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.files import tensor_digest

from ..narrow import given

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (19, 3, 32, 32), np.uint8)
LABELS = np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 3, 10, 7, 10, 9, 1, 2])
REQUIRE_ANSWER = torchvision_sets.require_answer
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
    monkeypatch.setattr(torchvision_sets, "require_answer", network)
    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", lambda *_, **__: pytest.fail("tried again"))
    return network


@pytest.fixture
def open_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers; what torchvision then gets from it is up to the test."""
    monkeypatch.setattr(torchvision_sets, "require_answer", lambda url: None)


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
    monkeypatch.setattr(cache_module, "PIECE", images * 3 * 32 * 32)
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
    shutil.rmtree(split_path(f"{name}-32", "train"))

    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_write_npy", full)
    with pytest.warns(UserWarning, match="cannot write to the cache"):
        found = load(name, "train")
    assert found.images.is_contiguous()
    assert np.array_equal(found.images, kept.images)
    assert np.array_equal(given(found.labels), given(kept.labels))
    assert (found.digest, found.classes, found.name) == (kept.digest, kept.classes, name)


@pytest.mark.usefixtures("svhn")
def test_what_a_killed_conversion_left_makes_room_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = cache / ".svhn-extra-32-train-x.tmp"
    left.mkdir(parents=True)
    there: list[bool] = []
    write = cache_module.write_arrays

    def watched(*given: Any) -> None:
        there.append(left.exists())
        write(*given)

    monkeypatch.setattr(cache_module, "write_arrays", watched)
    load("svhn-extra", "train")
    assert there == [False]


def test_images_lie_in_the_order_of_their_shape(svhn: Path, cifar: Path) -> None:
    for name in ("svhn", "svhn-extra", "cifar10"):
        assert load(name, "train").images.is_contiguous()


def test_torchvision_s_arrays_are_not_copied_as_a_whole(svhn: Path, cifar: Path) -> None:
    for name in ("svhn", "svhn-extra", "cifar10"):
        tensors, _ = torchvision_sets.read_official(name, "train", svhn)
        assert isinstance(tensors["images"], LazyArray)
        assert tensors["images"][2:5].flags.c_contiguous


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
    monkeypatch.setattr(torchvision_sets, "READERS", {})
    second = load(name, "train")
    assert first.digest == second.digest
    assert np.array_equal(first.images, second.images)


def official_lines(name: str) -> list[str]:
    """What torchvision fetches, written out: the tables of other files are those that it has."""
    if name == "cifar10":
        return [f"  {CIFAR10.url}  MD5 {CIFAR10.tgz_md5}"]
    pieces = ("train", "extra", "test") if name == "svhn-extra" else ("train", "test")
    return [f"  {SVHN.split_list[piece][0]}  MD5 {SVHN.split_list[piece][2]}" for piece in pieces]


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
def test_without_network_all_files_are_named(
    name: str, part: Any, file: str, cache: Path, network: ShutNetwork
) -> None:
    with pytest.raises(UserError) as raised:
        load(name, part)
    first, *lines = str(raised.value).split("\n")
    assert first.startswith(f"cannot download {file} (Name or service not known); put these files in ")
    assert f" {cache / 'downloads'}, or use --data FILE" in first
    assert "--data synthetic" in first
    assert "--data ARCHIVE" in first
    assert lines == official_lines(name.removesuffix("-remix"))
    assert raised.value.code == 1
    assert network.asked == [file]
    assert (cache / "downloads").is_dir()


def test_the_official_addresses_and_checksums_are_complete() -> None:
    for name, count in (("svhn", 2), ("svhn-extra", 3), ("cifar10", 1)):
        files = torchvision_sets.official_files(name)
        assert len(files) == count
        for file in files:
            assert file.url.startswith("http")
            assert file.url.endswith(f"/{file.name}")
            assert len(file.md5) == 32


@pytest.mark.usefixtures("svhn")
def test_a_damaged_file_is_not_read(svhn: Path) -> None:
    file = svhn / "train_32x32.mat"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train_32x32.mat is damaged .*; put these files in ") as raised:
        load("svhn", "train")
    _, damaged, sound = str(raised.value).split("\n")
    assert "(already there)" not in damaged
    assert sound.endswith("(already there)")
    assert file.exists()
    assert len(load("svhn", "test")) == 4


def test_damaged_extra_digits_are_not_read(svhn: Path) -> None:
    file = svhn / "extra_32x32.mat"
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match=r"extra_32x32.mat is damaged .*; put these files in "):
        load("svhn-extra", "train")
    assert len(load("svhn-extra", "test")) == 4
    assert len(load("svhn", "train")) == 8


def test_missing_extra_digits_are_asked_for(svhn: Path, network: ShutNetwork) -> None:
    (svhn / "extra_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"cannot download extra_32x32.mat .*; put these files in "):
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
    with pytest.raises(UserError, match="put these files in"):
        load("cifar10", "train")
    assert not (tmp_path / "t").exists()


@pytest.mark.usefixtures("open_network")
def test_the_beginning_of_a_download_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(url: str, file: str) -> NoReturn:
        Path(file).write_bytes(b"half")
        raise TimeoutError("timed out")

    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(torchvision_utils, "_urlretrieve", break_off)
    with pytest.raises(UserError, match=r"cannot download train_32x32.mat \(timed out\)"):
        load("svhn", "train")
    assert list((cache / "downloads").iterdir()) == []


@pytest.mark.usefixtures("open_network")
def test_a_download_that_ends_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(torchvision_utils, "_urlretrieve", lambda _, file: Path(file).write_bytes(b"half"))
    with pytest.raises(UserError, match=r"cannot download train_32x32.mat"):
        load("svhn", "train")


@pytest.mark.usefixtures("open_network")
def test_a_download_is_read(svhn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = svhn / "train_32x32.mat"
    content = file.read_bytes()
    file.write_bytes(b"damaged")
    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(torchvision_utils, "_urlretrieve", lambda _, file: Path(file).write_bytes(content))
    told: list[str] = []
    assert len(load("svhn", "train", progress=lambda text, *_: told.append(text))) == 8
    assert told == ["checking and reading train_32x32.mat", "converting svhn"]


@pytest.mark.usefixtures("open_network")
def test_the_network_has_a_timeout_for_so_long(network: ShutNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_utils, "_get_redirect_url", network)
    socket.setdefaulttimeout(None)
    with pytest.raises(UserError):
        load("svhn", "train")
    assert network.timeouts == [torchvision_sets.TIMEOUT_SECONDS]
    assert socket.getdefaulttimeout() is None


def test_a_full_disk_is_not_taken_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(torchvision_sets.READERS, "svhn", full)
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
    assert torchvision.datasets.SVHN.split_list["train"][1] == torchvision_sets.file_of("svhn", "train")
    assert torchvision.datasets.SVHN.split_list["test"][1] == torchvision_sets.file_of("svhn", "test")
    assert torchvision.datasets.SVHN.split_list["extra"][1] == torchvision_sets.file_of("svhn", "extra")
    assert torchvision.datasets.CIFAR10.filename == torchvision_sets.file_of("cifar10", "train")


def test_the_page_on_data_has_the_addresses_and_checksums() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for name in ("svhn-extra", "cifar10"):
        for file in torchvision_sets.official_files(name):
            assert f"`{file.name}` | {file.url} | `{file.md5}` |" in page


# Whether there is a network


class Silent(BaseHTTPRequestHandler):
    """Answers a request for /file, and no other one before the client has gone."""

    def do_HEAD(self) -> None:
        if self.path == "/silence":
            self.rfile.read(1)
        else:
            self.send_error(404 if self.path == "/missing" else 200)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["file", "missing"])
def test_any_answer_of_a_server_will_do(server: str, path: str) -> None:
    REQUIRE_ANSWER(f"{server}/{path}")


def test_a_silent_server_is_not_waited_for(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_sets, "ANSWER_SECONDS", 0.2)
    with pytest.raises(OSError, match=r"timed out|no answer within 0\.2 s"):
        REQUIRE_ANSWER(f"{server}/silence")


def test_a_slow_look_up_of_a_name_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(60))
    monkeypatch.setattr(torchvision_sets, "ANSWER_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        REQUIRE_ANSWER("http://nowhere.invalid/file")
    assert time.monotonic() - start < 30
    done.set()


def test_a_name_that_is_not_found_is_an_error_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(urllib.error.URLError, match="Name or service not known"):
        REQUIRE_ANSWER("http://nowhere.invalid/file")


# Official files that a user names


@pytest.fixture
def copies(svhn: Path, cifar: Path, tmp_path: Path) -> Path:
    """Official files of both data sets, outside the cache and without what torchvision unpacks."""
    folder = tmp_path / "copies"
    svhn.rename(folder)
    return folder


def same(left: Split, right: Split) -> bool:
    assert left.labels is not None
    assert right.labels is not None
    equal = torch.equal(left.images, right.images) and torch.equal(left.labels, right.labels)
    facts = [(split.digest, split.classes, split.name, split.part) for split in (left, right)]
    return equal and facts[0] == facts[1]


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("svhn", "train_32x32.mat"),
        ("svhn", "test_32x32.mat"),
        ("svhn-extra", "extra_32x32.mat"),
        ("cifar10", "cifar-10-python.tar.gz"),
    ],
)
def test_a_file_by_its_path_is_its_data_set(
    name: str, file: str, part: Any, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in copies.iterdir())
    by_path = load(str(copies / file), part)
    assert sorted(path.name for path in copies.iterdir()) == before
    downloads = tmp_path / "another" / "downloads"
    downloads.parent.mkdir()
    monkeypatch.setenv("GENSSL_CACHE", str(downloads.parent))
    copies.rename(downloads)
    assert same(by_path, load(name, part))


def test_a_folder_of_official_files_is_their_data_set(copies: Path, network: ShutNetwork) -> None:
    with pytest.raises(UserError, match="contains official files of svhn and cifar10; name one of the files"):
        load(str(copies), "train")
    (copies / "cifar-10-python.tar.gz").rename(copies.parent / "cifar-10-python.tar.gz")
    (copies / "holiday.png").write_bytes(b"not read")
    by_folder = load(str(copies), "train")
    assert same(by_folder, load(str(copies / "train_32x32.mat"), "train"))
    assert len(by_folder) == 8  # the extra digits are not asked for
    remix = load(f"{copies}-remix", "train")
    assert (remix.name, len(remix)) == ("svhn-remix", 8)
    assert network.asked == []


def test_other_sizes_of_files_by_path(copies: Path) -> None:
    assert load(str(copies / "test_32x32.mat"), "test", image_size=8).images.shape == (4, 3, 8, 8)


def test_what_was_read_from_a_path_is_prepared_under_its_name(copies: Path) -> None:
    first = load(str(copies / "cifar-10-python.tar.gz"), "test")
    for file in copies.iterdir():
        file.unlink()
    assert same(first, load("cifar10", "test"))


@pytest.mark.parametrize("named", ["train_32x32.mat", "test_32x32.mat", "", "extra_32x32.mat"])
def test_a_missing_file_is_named_before_anything_is_read(
    named: str, copies: Path, network: ShutNetwork
) -> None:
    (copies / "cifar-10-python.tar.gz").unlink()
    missing = "train_32x32.mat" if named == "test_32x32.mat" else "test_32x32.mat"
    (copies / missing).unlink()
    with pytest.raises(UserError) as raised:
        load(str(copies / named), "train" if missing == "test_32x32.mat" else "test")
    first, *lines = str(raised.value).split("\n")
    name = "svhn-extra" if named == "extra_32x32.mat" else "svhn"
    assert first.startswith(f"{copies} has no {missing}; put all files of {name} in one folder, or use ")
    there = [line.removesuffix("  (already there)") for line in lines]
    assert there == official_lines(name)
    assert [line for line in lines if line in there] == [line for line in there if f"/{missing} " in line]
    assert raised.value.code == 2
    assert network.asked == []


@pytest.mark.parametrize("file", ["train_32x32.mat", "cifar-10-python.tar.gz"])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_wrong_checksum_is_one_line(copies: Path, file: str, prepared: bool) -> None:
    copy = copies / file
    if prepared:
        load(str(copy), "train")
    content = copy.read_bytes()
    copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError) as raised:
        load(str(copy), "train")
    expected = f"is not the official file, or it is damaged: its MD5 is {md5(copy.read_bytes())} instead of "
    assert str(raised.value).startswith(f"{copy} {expected}{md5(content)}; download it again from http")
    assert "\n" not in str(raised.value)
    assert raised.value.code == 2


def test_a_pickle_in_a_file_by_path_is_not_read_before_its_checksum(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = copies / "cifar-10-python.tar.gz"
    archive.write_bytes(tarball({"data_batch_1": pickle.dumps(Trap(tmp_path / "t"))}))
    with pytest.raises(UserError, match="is not the official file"):
        load(str(archive), "train")
    # The file is exchanged between the check and the reading
    monkeypatch.setattr(torchvision_sets, "check_copies", lambda *_: copies)
    with pytest.raises(UserError, match="is not the official file"):
        load(str(archive), "train")
    # ... and again: what is unpacked is checked, too
    monkeypatch.setattr(torchvision_utils, "calculate_md5", lambda file: CIFAR10.tgz_md5)
    monkeypatch.setattr(torchvision_utils, "check_md5", lambda file, sum: md5(Path(file).read_bytes()) == sum)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz changed while it was read"):
        load(str(archive), "train")
    assert not (tmp_path / "t").exists()


def test_no_room_to_unpack(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torchvision_utils, "extract_archive", full)
    with pytest.raises(UserError, match=r"cannot unpack .*No space left on device.*; set TMPDIR") as raised:
        load(str(copies / "cifar-10-python.tar.gz"), "test")
    assert raised.value.code == 1


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("somewhere/train_32x32.mat", "svhn"),
        ("test_32x32.mat-remix", "svhn-remix"),
        ("extra_32x32.mat", "svhn-extra"),
        ("~/cifar-10-python.tar.gz", "cifar10"),
        ("somewhere/train.tar.gz", "train"),
        ("~no-such-user/train.tar.gz", "train"),
    ],
)
def test_runs_of_official_files_are_called_after_their_data_set(data: str, name: str) -> None:
    assert short_name(data) == name


def test_runs_of_a_folder_of_official_files_are_called_after_their_data_set(copies: Path) -> None:
    assert short_name(str(copies)) == "copies"  # two data sets: it cannot be loaded
    (copies / "cifar-10-python.tar.gz").unlink()
    assert short_name(str(copies)) == "svhn"
