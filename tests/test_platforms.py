"""genssl without what only POSIX systems have, as on Windows: it can be imported, and it trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The libraries that stand in for POSIX are imported first: here they are those of a POSIX system
WITHOUT_POSIX = """
import mmap, os, signal, sys
import filelock, psutil

for name in ("fcntl", "grp", "pwd", "resource", "syslog", "termios"):
    sys.modules[name] = None
for name in (
    "chown", "fchmod", "fork", "geteuid", "getuid", "killpg", "mkfifo", "pread", "pwrite",
    "sched_getaffinity", "setsid", "statvfs", "sysconf",
):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1"):
    delattr(signal, name)
del mmap.MADV_RANDOM, mmap.MADV_WILLNEED
"""

IMPORT_EVERYTHING = """
import importlib, pkgutil
import genssl

for module in pkgutil.walk_packages(genssl.__path__, "genssl."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""

COMMAND = """
from genssl.cli import main
main()
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has nothing that could be blocked")


def run(code: str, *arguments: object) -> str:
    """What a Python program prints in a process without POSIX."""
    command = [sys.executable, "-c", WITHOUT_POSIX + code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_blocked_module_is_missed() -> None:
    with pytest.raises(AssertionError, match="import of fcntl halted"):
        run("import fcntl")


@pytest.mark.slow  # torch, scikit-learn and matplotlib
def test_every_module_is_imported() -> None:
    modules = run(IMPORT_EVERYTHING).split()
    assert {"genssl.files", "genssl.data.cache", "genssl.training.ddp", "genssl.eval.sample"} <= {*modules}


def test_what_needs_no_torch_works(vae_run: Path) -> None:
    assert "Train, sample and measure" in run(COMMAND, "--help")
    assert vae_run.name in run(COMMAND, "runs", "list")


@pytest.mark.slow
def test_training_works(digits: Path, tmp_path: Path) -> None:
    run(
        COMMAND, "train", "vae", "--data", digits, "--limit", 32, "--epochs", 1, "--batch-size", 16,
        "--set", "width=8", "--set", "z_dim=4", "--set", "mixture_components=2", "--device", "cpu",
        "--out", tmp_path / "run", "--sample-every", 0, "--resident-limit", 0,
    )  # fmt: skip
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / ".lock").exists()
    run(COMMAND, "sample", tmp_path / "run", "-n", 4, "--out", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").is_file()
