"""Runs that are killed at random moments and started again: as if nothing had been."""

import contextlib
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genssl import config as configs
from genssl import files, runs
from genssl.errors import UserError
from genssl.files import TEMPORARY, sweep
from genssl.studies import plan
from genssl.training import run
from genssl.training.options import Options
from tests import campaign_kills
from tests.campaign_kills import Work
from tests.conftest import call

KILLS = int(os.environ.get("GENSSL_KILLS", "2"))  # all kinds and 200 by hand, as in campaign_kills
KINDS = ("vae", "simsiam", "byol", "moco")  # two of which keep more than weights: a target, a queue


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    record = campaign_kills.run(tmp_path / "kills.json", KILLS, 21, 1e9, tmp_path, (kind,))
    assert campaign_kills.is_sound(record), record["failures"]
    assert record["kinds"][kind]["kills"] == KILLS
    assert record["kinds"][kind]["ended"] > 0


def test_what_is_not_as_undisturbed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, killed = (Work("vae", tmp_path, tmp_path / name) for name in ("undisturbed", "killed"))

    def whole(work: Work) -> tuple[bool, str]:
        work.out.mkdir()
        save_file({"a": torch.full((2,), float(len(work.out.name)))}, work.out / "model.safetensors")
        if work.out.name == "killed":
            (work.out / ".a.json.ab12cd_4.tmp").write_text("")
        return True, ""

    monkeypatch.setattr(Work, "whole", whole)
    monkeypatch.setattr(campaign_kills, "kill", lambda *_: (True, 0))
    undisturbed.whole()
    outcome = campaign_kills.outcome_of(undisturbed.out)
    counts, said = campaign_kills.cycle(outcome, killed, random.Random(0), 1.0, 1)
    assert counts == {
        "kills": 1, "ended": 1, "equal_weights": 0, "same_files": 0, "orphans": 1, "processes_left": 0,
        "lost_runs": 0,
    }  # fmt: skip
    assert ".a.json.ab12cd_4.tmp" in said
    assert not campaign_kills.is_sound({"kinds": {"vae": counts}})


def test_only_temporary_files_are_swept(tmp_path: Path) -> None:
    left = []
    with contextlib.suppress(KeyboardInterrupt), files.atomic(tmp_path / "a.json") as temporary:
        left.append(temporary.name)
        raise KeyboardInterrupt
    assert TEMPORARY.fullmatch(left[0]), "the name of `atomic`"
    names = [left[0], ".tmpAb12Cd", "notes.tmp", ".a.tmp", "state.safetensors", ".lock"]
    for name in names:
        (tmp_path / name).write_text("")
    sweep(tmp_path, older=3600)
    assert len(list(tmp_path.iterdir())) == len(names)
    sweep(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(names[2:])
    assert not files.is_empty(tmp_path)


def test_a_folder_that_a_kill_left_without_settings_can_be_used(tmp_path: Path) -> None:
    from genssl.runs import check_free

    (tmp_path / ".config.json.ab12cd_4.tmp").write_text("{")
    (tmp_path / ".lock").write_text("")
    check_free(tmp_path)


def left_by_a_kill(folder: Path) -> Path:
    """A run's folder as a kill before its settings leaves it."""
    folder.mkdir(parents=True)
    for name in (".lock", ".config.json.ab12cd_4.tmp"):
        (folder / name).write_text("")
    return folder


@pytest.mark.parametrize("arm", [False, True])
def test_a_run_takes_the_folder_again_that_a_kill_left_without_settings(
    arm: bool, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    parent = tmp_path / "arms" if arm else tmp_path
    left = left_by_a_kill(parent / "vae-digits-baseline")
    settings = {"data": str(digits), "epochs": 1, "batch_size": 32, "width": 4, "z_dim": 3, "limit": 64}
    config = configs.make("vae", {**settings, "mixture_components": 0, "sample_every": 0})
    assert run.start(config, Options(device="cpu", tag="baseline", arm=arm)) == left
    assert [folder.name for folder in parent.iterdir()] == [left.name]
    assert not [file.name for file in left.iterdir() if file.name.startswith(".")]


def fill_the_disk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file of this name be written any more."""
    write = files.write_bytes

    def refuse(path: Path, content: bytes) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(files, "write_bytes", refuse)


def test_a_full_disk_before_the_settings_leaves_no_folder(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk("config.json", monkeypatch)
    result = call("--checkpoints", tmp_path, "train", "vae", "--data", digits, "--epochs", 1, "--yes")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("genssl: the disk is full")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_demo_is_a_line_and_its_folder_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    with monkeypatch.context() as patch:
        fill_the_disk("plan.json", patch)
        result = call("demo", "--out", folder)
    assert result.exit_code == 1
    assert result.output.startswith("genssl: the disk is full")
    assert result.output.count("\n") == 1
    assert plan.begin(folder, {}, lambda: plan.Plan("", (), ())).steps == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "notes.txt").write_text("mine"),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "samples").mkdir(),
    ],
)
def test_a_folder_with_anything_in_it_is_not_taken(
    change: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    change(left_by_a_kill(tmp_path / "vae-svhn"))
    folder, lock = runs.new_folder(configs.make("vae", {}))
    lock.release()
    assert folder == tmp_path / "vae-svhn-2"


def test_a_folder_that_a_living_process_has_locked_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    config = configs.make("vae", {})
    first, lock = runs.new_folder(config)
    second, other = runs.new_folder(config)
    assert [first.name, second.name] == ["vae-svhn", "vae-svhn-2"]
    lock.release()
    again, lock = runs.new_folder(config)
    assert again == first
    with pytest.raises(UserError, match="another process is training"):
        runs.new_folder(config, out=second)
    for held in (lock, other):
        held.release()


def test_where_there_are_no_locks_no_folder_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    left_by_a_kill(tmp_path / "vae-svhn")

    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    assert [runs.new_folder(configs.make("vae", {}))[0].name for _ in range(2)] == [
        "vae-svhn-2",
        "vae-svhn-3",
    ]


def test_a_run_sweeps_its_own_folder_and_leaves_an_evaluation_its_file(vae_run: Path) -> None:
    from genssl.training.run_folder import RunFolder

    (vae_run / "eval").mkdir(exist_ok=True)
    swept = [vae_run / ".state.safetensors.ab12cd_4.tmp", vae_run / "samples" / ".epoch-001.png.ab12cd_4.tmp"]
    fresh = vae_run / "eval" / ".sample.json.ab12cd_4.tmp"
    for file in (*swept, fresh):
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    folder = RunFolder(vae_run)
    try:
        folder.read_config()
    finally:
        folder.release()
    assert not any(file.exists() for file in swept)
    assert fresh.exists()
    os.utime(fresh, (0, 0))
    folder = RunFolder(vae_run)
    folder.read_config()
    folder.release()
    assert not fresh.exists()
