"""Where runs live."""

from pathlib import Path

import pytest

from genssl import paths

from .conftest import call


def test_the_root_holds_inside_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "usual"))
    with paths.use_runs_root(tmp_path / "outer"):
        with paths.use_runs_root(tmp_path / "inner"):
            assert paths.parents(arms=True) == [tmp_path / "inner", tmp_path / "inner" / "arms"]
        assert paths.runs_root() == tmp_path / "outer"
    assert paths.runs_root() == tmp_path / "usual"


def test_the_option_before_a_command_names_it(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    result = call("--checkpoints", tmp_path / "elsewhere", "runs", "list")
    assert (result.exit_code, f"{tmp_path / 'elsewhere'}/" in result.stderr) == (0, True)
    assert paths.runs_root() != tmp_path / "elsewhere"
