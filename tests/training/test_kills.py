"""Runs that are killed at random moments and started again: as if nothing had been."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genssl.files import TEMPORARY, read_tensors, sweep
from genssl.run_info import MODEL

KILLS = int(os.environ.get("GENSSL_KILLS", "6"))  # 200 by hand
RUNS = {
    "vae": ["--set", "width=8", "--set", "z_dim=6", "--set", "mixture_components=2", "--epochs", "6"],
    "simsiam": [
        "--set", "encoder=small", "--set", "projector_dim=16", "--set", "projector_hidden=16",
        "--set", "predictor_hidden=8", "--knn-every", "0", "--epochs", "3",
    ],
}  # fmt: skip


def _words(method: str, digits: Path, out: Path) -> list[str]:
    shared = ["--data", str(digits), "--batch-size", "16", "--device", "cpu", "--precision", "fp32"]
    # A state now and then only: some kills come before the first one
    often = ["--sample-every", "1", "--save-every", "0.3", "--auto-resume", "--out", str(out)]
    return [sys.executable, "-m", "genssl", "train", method, *shared, *often, *RUNS[method]]


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNS)
def test_killed_at_random_moments(method: str, digits: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(_words(method, digits, undisturbed), check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - began
    chance, kills = random.Random(method), 0
    while kills < KILLS // len(RUNS):
        process = subprocess.Popen(
            _words(method, digits, killed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            # The start takes most of it
            _, said = process.communicate(timeout=chance.uniform(0.2, 0.8) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, said.decode()
        _assert_same(undisturbed, killed)
        shutil.rmtree(killed)
    subprocess.run(_words(method, digits, killed), check=True, stdout=subprocess.DEVNULL)
    _assert_same(undisturbed, killed)


def _assert_same(first: Path, second: Path) -> None:
    """The same weights, and the same files: none is lost, none is left."""
    weights, others = (read_tensors(run / MODEL)[0] for run in (first, second))
    assert weights.keys() == others.keys()
    assert all(bool((weights[name] == others[name]).all()) for name in weights)
    names = [{str(file.relative_to(run)) for file in run.rglob("*")} for run in (first, second)]
    assert names[0] == names[1]


def test_only_temporary_files_are_swept(tmp_path: Path) -> None:
    from genssl import files

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
