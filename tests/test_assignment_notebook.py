"""Every cell of the assignment's notebook, in its order, on a few small images."""

import ast
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import pytest

import genssl
from genssl.data.synthetic import render
from genssl.eval.result import EvalResult

from .test_docs import ROOT

NOTEBOOK = ROOT / "docs" / "assignment.ipynb"
# What the first cells set, with less of everything
SMALLER = {"SMALL": {"epochs": 1, "limit": 64, "batch_size": 32, "sample_every": 1}}
FIGURES = {"sample", "latent-profile", "interpolate", "noise-levels", "knn-eval", "linear-eval"}


def cells() -> list[str]:
    """The code of each cell; a line for the notebook alone does nothing here."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [source.replace("%pip install --quiet genssl", "pass") for source in sources]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """What a notebook shows of a cell: the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        exec(compile(tree, "cell", "exec"), names)
        return None
    tree.body.pop()
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that cells show, by a stand-in of IPython, in an empty folder with few digits."""
    shown: list[Path] = []

    def image(file: Path, width: int | None = None) -> Path:
        assert file.stat().st_size > 0
        return file

    package, display = ModuleType("IPython"), ModuleType("IPython.display")
    # matplotlib asks for these, where there is a module of this name
    package.version_info, package.get_ipython = (9, 0), lambda: None  # type: ignore[attr-defined]
    display.Image, display.display = image, shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(render, "TRAIN_IMAGES", 200)
    monkeypatch.setattr(render, "TEST_IMAGES", 60)
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    return shown


@pytest.mark.slow
@pytest.mark.figures
def test_every_cell_runs_and_shows_its_figure(pictures: list[Path], tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    shown = []
    for source in cells():
        shown.append(run_cell(source, names))
        if "SMALL = " in source:
            assert names.keys() >= SMALLER.keys()
            names.update(SMALLER)
    results = [value for value in shown if isinstance(value, EvalResult)]
    assert {result.name for result in results} == FIGURES
    assert all("<img" in result._repr_html_() for result in results)
    trained = [value for value in shown if isinstance(value, genssl.Run)]
    assert [run.config.method for run in trained] == ["vae", "ddpm"]
    assert [file.name for file in pictures] == [
        "wall-clock.png", "samples-over-epochs.png", "reconstructions-over-epochs.png",
        "samples-over-epochs.png",
    ]  # fmt: skip
    kl, loss = (value for value in shown if getattr(value, "ndim", 3) < 2)
    assert kl.tolist() == [0.0, 0.5]
    assert float(loss) == pytest.approx(-1, abs=1e-6)
    assert names["runs"]["none"].config.stop_gradient is False
    assert len(names["axes"][0].lines) == 2
    # From the top again: nothing is trained twice
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("model.safetensors")}
    assert len(before) == 4
    for source in cells()[:6]:
        run_cell(source, names)
        if "SMALL = " in source:
            names.update(SMALLER)
    assert before == {file: file.stat().st_mtime_ns for file in before}
