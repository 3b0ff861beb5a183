"""Thousands of mutated files of a run folder and of data: each is read, or refused in a line, in bounds."""

import io
import json
import random
import resource
import shutil
import signal
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest
from PIL import Image

from genssl import checkpoint, files, run_info
from genssl import config as configs
from genssl.data import image_folder
from genssl.errors import explain
from genssl.report import load, page
from genssl.training.run_folder import RunFolder
from tests.conftest import call

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no alarm")]

SEED = 21
SECONDS = 10  # that no input may take
SOME = 400 * 2**20  # bytes by which the memory may grow, with what libraries keep
VALUES = [
    None, True, -1, 0, 3, 10**30, 10**299, 0.5, -1e308, 1e-320, "", "x", "\x1b[2J", "\ud800", "9" * 5000, [],
    {}, [[]], [{}], [1], ["x"], [None], {"x": 1}, {"x": []}, {"": ""}, [{"x": 1}, []],
    [{"x": {"x": [1, {"x": 2}]}}],
]  # fmt: skip
WORDS = [
    b"\0",
    b"\xff",
    b"[" * 2000,
    b'{"a":' * 500,
    b"9" * 5000,
    b"NaN",
    b"1e999",
    b"null",
    b"-",
    b"\n",
    b'"',
    b"\x1b",
]


def flipped(content: bytes, chance: random.Random) -> bytes:
    """The content with bytes changed, cut out, repeated or put in."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        i = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0 if i < len(changed):
                changed[i] ^= 1 << chance.randrange(8)
            case 1:
                changed[i:] = changed[i + chance.randrange(1, 40) :]
            case 2:
                changed[i:i] = chance.choice(WORDS)
            case 3:
                changed[i : i + 8] = chance.randbytes(8)
            case _:
                del changed[i : i + chance.randrange(1, 20)]
    return bytes(changed)


def altered(value: object, chance: random.Random) -> object:
    """The JSON value with one of the values in it, or itself, replaced, removed or doubled."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(VALUES)
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    copy = value.copy()
    match chance.randrange(6):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[chance.choice(("x", "title", "headline", "notes", "rows", "units", "step"))] = chance.choice(
                VALUES
            )
        case _:
            copy[key] = altered(value[key], chance)
    return copy


def altered_text(content: bytes, chance: random.Random) -> bytes:
    """A file of JSON or of lines of JSON, with a value altered; or flipped."""
    if chance.random() < 0.3:
        return flipped(content, chance)
    is_lines = content.count(b"}\n{") > 0
    values = [json.loads(line) for line in (content.splitlines() if is_lines else [content])]
    i = chance.randrange(len(values))
    values[i] = altered(values[i], chance)
    return "\n".join(json.dumps(value) for value in values).encode()


class TooLong(BaseException):
    """An input took more than SECONDS; no reader catches it."""


@contextmanager
def in_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory() -> int:
    """The largest that this process has been, in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def polite(read: Callable[[], object]) -> None:
    """Read; what is raised has one line for a person, which a terminal can show."""
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        assert str(line).isprintable()
        assert len(str(line)) < 2000


@pytest.fixture
def bounded() -> Iterator[None]:
    before = memory()
    yield
    assert memory() - before < SOME


@pytest.fixture(scope="module")
def evaluated(vae_run: Path) -> Path:
    for command in (["sample", vae_run, "-n", 4], ["latent-profile", vae_run], ["report", vae_run]):
        assert call(*command).exit_code == 0
    return vae_run


def copy_of(run: Path, tmp_path: Path) -> Path:
    """A copy without pictures, whose embedding would take most of the time."""
    ignored = shutil.ignore_patterns("*.png", "*.html")
    return Path(shutil.copytree(run, tmp_path / "runs" / run.name, ignore=ignored))


def write_report(folder: Path, out: Path) -> None:
    page.write(load.gather([str(folder)]), out, "assignment")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", ["config.json", "environment.json", "history.jsonl", "eval/*.json"])
def test_texts_of_a_run(name: str, evaluated: Path, tmp_path: Path) -> None:
    run = copy_of(evaluated, tmp_path)
    chance = random.Random(f"{SEED} {name}")
    for file in run.glob(name):
        content = file.read_bytes()
        for _ in range(70):
            file.write_bytes(altered_text(content, chance))
            polite(lambda: write_report(run, tmp_path / "x.html"))
            polite(lambda: run_info.data_path(run))
            polite(lambda: RunFolder(run, lock=False).read_history(3, 2))
            polite(lambda: configs.read(files.read_text(run / "config.json"), "config.json"))
        file.write_bytes(content)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_tensors_of_a_run(name: str, evaluated: Path, tmp_path: Path) -> None:
    run = copy_of(evaluated, tmp_path)
    chance = random.Random(f"{SEED} {name}")
    content = (run / name).read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(300):
        header = flipped(content[8:length], chance)
        prefix = len(header).to_bytes(8, "little") if chance.random() < 0.5 else flipped(content[:8], chance)
        (run / name).write_bytes(prefix + header + content[length:])
        polite(lambda: run_info.inspect(run))
        polite(lambda: run_info.verify(run))
        polite(lambda: files.read_tensors(run / name))


@pytest.mark.usefixtures("bounded")
def test_weights_that_somebody_signed(evaluated: Path, tmp_path: Path) -> None:
    run = copy_of(evaluated, tmp_path)
    chance = random.Random(SEED)
    tensors, metadata = files.read_tensors(evaluated / "model.safetensors")
    for _ in range(120):
        name = chance.choice(("config", "metrics", "training", "epoch", "finished", "format"))
        changed = altered_text(metadata[name].encode(), chance).decode(errors="replace")
        with suppress(UnicodeEncodeError):
            files.write_tensors(run / "model.safetensors", tensors, metadata | {name: changed})
        polite(lambda: checkpoint.load(run))
        polite(lambda: write_report(run, tmp_path / "x.html"))


def test_commands_on_a_spoiled_run(evaluated: Path, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    run = copy_of(evaluated, tmp_path)
    names = ["config.json", "environment.json", "history.jsonl", "eval/sample-n4.json"]
    for _ in range(12):
        name = chance.choice(names)
        content = (run / name).read_bytes()
        (run / name).write_bytes(altered_text(content, chance))
        for command in (
            ["runs", "show", run], ["runs", "verify", run], ["report", run, "--out", tmp_path / "x.html"],
            ["--checkpoints", run.parent, "runs", "list"], ["train", "--config", run, "--dry-run"],
        ):  # fmt: skip
            with in_time():
                output = call(*command).output
            assert "Traceback" not in output
            assert "unexpected error" not in output, (command, (run / name).read_bytes())
            assert all(line.isprintable() for line in output.split("\n"))
        (run / name).write_bytes(content)


def _images() -> dict[str, bytes]:
    images = {}
    for i, kind in enumerate(("png", "jpeg", "bmp", "gif")):
        content = io.BytesIO()
        Image.linear_gradient("L").resize((8 + i, 8)).save(content, kind)
        images[f"set/{'ab'[i % 2]}/{i}.{kind}"] = content.getvalue()
    return images


def _archive(kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in _images().items():
                archive.writestr(name, data)
        return content.getvalue()
    formats = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}
    mode = f"w:{kind}" if kind in {"gz", "bz2", "xz"} else "w"
    with tarfile.open(fileobj=content, mode=mode, format=formats.get(kind, tarfile.GNU_FORMAT)) as tar:  # type: ignore[call-overload]
        for name, data in _images().items():
            info = tarfile.TarInfo(f"{'long' * 40}/{name}")
            info.size = len(data)
            info.pax_headers = {"GNU.sparse.major": "1", "mtime": "1.5"} if name.endswith("gif") else {}
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("set/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        tar.addfile(link)
    return content.getvalue()


def _resigned(content: bytes, chance: random.Random) -> bytes:
    """A .tar of which a field of a header is changed, and its checksum with it."""
    changed = bytearray(content)
    starts = [i for i in range(0, len(changed), 512) if changed[i + 257 : i + 262] == b"ustar"]
    start = chance.choice(starts)
    field = chance.choice([(124, 12), (156, 1), (157, 100), (345, 155), (0, 100), (386, 97), (482, 30)])
    digits = [
        b"77777777777\0",
        b"\x80" + b"\x40" + bytes(10),
        b"0000000000\0",
        b"\xff" * 12,
        chance.randbytes(12),
    ]
    value = (
        chance.choice(digits)
        if field[1] > 1
        else chance.choice([b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5"])
    )
    changed[start + field[0] : start + field[0] + len(value[: field[1]])] = value[: field[1]]
    changed[start + 148 : start + 156] = b" " * 8
    changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", ["zip", "pax", "gnu", "gz", "bz2", "xz"])
def test_archives(kind: str, tmp_path: Path) -> None:
    chance = random.Random(f"{SEED} {kind}")
    content = _archive(kind)
    path = tmp_path / ("a.zip" if kind == "zip" else "a.tar")
    for i in range(300):
        mutate = _resigned if kind in {"pax", "gnu"} and i % 2 else flipped
        path.write_bytes(mutate(content, chance))
        polite(lambda: image_folder.read(path, 16, skip_bad=True))


@pytest.mark.usefixtures("bounded")
def test_images_in_a_folder(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    images = _images()
    for name in images:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for _ in range(300):
        for name, content in images.items():
            (tmp_path / name).write_bytes(flipped(content, chance))
        polite(lambda: image_folder.read(tmp_path, 16, skip_bad=True))
