"""`--compile` where torch has no working compiler."""

import getpass
from pathlib import Path

import pytest
import torch

from genssl.training import options, run
from tests.conftest import SMALL, call

TRAIN = ("train", "vae", "--limit", 32, "--epochs", 1, "--batch-size", 16, "--device", "cpu", *SMALL)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without a C++ compiler, on which nothing has been compiled before."""
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()


@pytest.mark.slow
def test_auto_goes_on_uncompiled(
    no_compiler: None, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "should_compile", lambda *arguments: True)  # as on a GPU
    result = call(*TRAIN, "--data", digits, "--out", tmp_path / "auto")
    assert result.exit_code == 0, result.output
    assert "warning: torch.compile does not work here" in result.output
    assert "training uncompiled" in result.output
    result = call(*TRAIN, "--data", digits, "--out", tmp_path / "on", "--compile", "on")
    assert result.exit_code == 2
    assert "torch.compile does not work here" in result.output
    assert "Traceback" not in result.output


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def getuser() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    def compile(*arguments: object, **settings: object) -> None:
        getpass.getuser()

    monkeypatch.setattr(getpass, "getuser", getuser)
    monkeypatch.setattr(torch, "compile", compile)
    problem = options.compiler_problem(torch.device("cpu"))
    assert problem is not None
    assert "uid not found: 12345" in problem


def test_a_compiler_that_works_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert options.compiler_problem(torch.device("cpu")) is None
