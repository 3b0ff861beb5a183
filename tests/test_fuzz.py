"""Thousands of mutated files of a run folder and of data: each is read, or refused in a line, in bounds."""

import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from genssl import checkpoint, files, run_info
from genssl import config as configs
from genssl.data import image_folder
from genssl.errors import explain
from genssl.report import load, page
from genssl.training.run_folder import RunFolder
from tests.campaign_inputs import KINDS, POLITE, Bench, add, carry_out, new_record
from tests.conftest import call
from tests.mutations import (
    SEED,
    SOME,
    altered_text,
    archive_of,
    flipped,
    images,
    in_time,
    memory,
    resigned,
    rounds,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no alarm")]


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
def evaluated(vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("evaluated") / vae_run.name
    shutil.copytree(vae_run, run, ignore=shutil.ignore_patterns("eval"))
    for command in (["sample", run, "-n", 4], ["latent-profile", run], ["report", run]):
        assert call(*command).exit_code == 0
    return run


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
        for _ in range(rounds(25)):
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
    for _ in range(rounds(100)):
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
    for _ in range(rounds(40)):
        name = chance.choice(("config", "metrics", "training", "epoch", "finished", "format"))
        changed = altered_text(metadata[name].encode(), chance).decode(errors="replace")
        with suppress(UnicodeEncodeError):
            files.write_tensors(run / "model.safetensors", tensors, metadata | {name: changed})
        polite(lambda: checkpoint.load(run))
        polite(lambda: write_report(run, tmp_path / "x.html"))


@pytest.fixture
def bench(evaluated: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("GENSSL_CACHE", "HF_HUB_OFFLINE"):  # which the bench sets
        monkeypatch.setenv(name, "")
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path / "a" / "b")
    bench.folder.mkdir(parents=True)
    bench.run, bench.digits = evaluated, digits
    return bench


@pytest.mark.parametrize("kind", KINDS)
def test_commands_on_what_is_hostile(kind: str, bench: Bench) -> None:
    done = carry_out(kind, bench, range(rounds(3)), SEED, 1e18)
    assert done["failures"] == []
    assert sum(done["outcomes"].values()) == rounds(3)
    assert done["outcomes"].keys() <= set(POLITE)


def test_what_is_not_polite_is_counted(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in the middle")

    monkeypatch.setattr(run_info, "inspect", fail)
    monkeypatch.setitem(KINDS, "odd", lambda bench, chance: ["runs", "show", bench.run])
    counted = new_record(SEED)
    counted["kinds"]["odd"] = {"outcomes": {"ok": 1}, "seconds": 0.0, "mib": 0, "failures": []}
    add(counted["kinds"]["odd"], carry_out("odd", bench, range(2), SEED, 1e18))
    assert counted["kinds"]["odd"]["outcomes"] == {"ok": 1, "unexpected error": 2}
    assert [failure["input"] for failure in counted["kinds"]["odd"]["failures"]] == [0, 1]
    assert "ZeroDivisionError" in counted["kinds"]["odd"]["failures"][0]["said"]


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", ["zip", "pax", "gnu", "gz", "bz2", "xz"])
def test_archives(kind: str, tmp_path: Path) -> None:
    chance = random.Random(f"{SEED} {kind}")
    content = archive_of(kind)
    path = tmp_path / ("a.zip" if kind == "zip" else "a.tar")
    for i in range(rounds(100)):
        mutate = resigned if kind in {"pax", "gnu"} and i % 2 else flipped
        path.write_bytes(mutate(content, chance))
        polite(lambda: image_folder.read(path, 16, skip_bad=True))


@pytest.mark.usefixtures("bounded")
def test_images_in_a_folder(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    contents = images()
    for name in contents:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for _ in range(rounds(100)):
        for name, content in contents.items():
            (tmp_path / name).write_bytes(flipped(content, chance))
        polite(lambda: image_folder.read(tmp_path, 16, skip_bad=True))
