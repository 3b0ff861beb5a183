"""The house rules, held by reading the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genssl

ROOT = Path(genssl.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# A module may import those on lower floors, and within its own room where that is allowed
FLOORS = {
    "cli": 9, "__main__": 10, "commands": 8, "studies": 7, "report": 6, "train": 5, "eval": 5,
    "runs": 4.5, "checkpoint": 4, "models": 3, "data": 3, "metrics": 3, "figures": 3,
    "runtime": 2, "processes": 2, "pixels": 2, "files": 2, "config": 2, "places": 2, "settings": 1.5,
    "errors": 1, "invocation": 1, "marks": 1, "states": 1, "__init__": 0,
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The genssl rooms that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "genssl":
            names = [f"genssl.{alias.name}" for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("genssl."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return  # the front door: it opens `checkpoint` lazily
    for other in imported(path):
        assert other in FLOORS, f"{other} has no floor"
        assert other == own or FLOORS[other] < FLOORS[own], f"{own} imports {other}"


def test_methods_do_not_import_methods() -> None:
    methods = {"vae", "ddpm", "simsiam", "dssl", "byol", "barlow_twins", "vicreg"}
    for path in (ROOT / "models").glob("*.py"):
        if path.stem == "build":
            continue
        found = {
            node.module.split(".")[2]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("genssl.models.")
        }
        assert not (found & methods - {path.stem}), path


def test_training_knows_no_method_by_name() -> None:
    for path in (ROOT / "train").glob("*.py"):
        text = path.read_text(encoding="utf-8").lower()
        assert not any(
            name in text for name in ("vae", "ddpm", "simsiam", "dssl", "byol", "barlow", "vicreg")
        ), path


def test_packages_re_export_nothing() -> None:
    for path in ROOT.glob("*/__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert all(isinstance(node, ast.Expr) for node in tree.body), path


def test_files_and_functions_are_short() -> None:
    lengths = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lengths.append((node.end_lineno or 0) - node.lineno + 1)
    lengths.sort()
    assert lengths[len(lengths) // 2] <= 12
    assert sum(length > 40 for length in lengths) <= 0.02 * len(lengths)


def test_no_pickle_and_no_global_randomness() -> None:
    words = ("import pickle", "torch.save(", "torch.load(", "np.random", "torch.distributions")
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in words), path


def test_help_is_free_of_torch() -> None:
    heavy = ("torch", "numpy", "pydantic", "PIL")
    code = f"import sys, genssl.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
