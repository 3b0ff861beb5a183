"""The examples in docstrings: whatever a program may call has one, and all of them run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import genssl
import genssl.metrics
import genssl.models
from genssl.models.build import METHODS

from . import structure

REFERENCE = structure.ROOT.parent / "docs" / "reference.md"


def functions(package: ModuleType) -> Iterator[str]:
    """The public functions that the modules of a package define."""
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == found.name and not name.startswith("_"):
                yield f"{found.name}.{name}"


def reference() -> Iterator[str]:
    """What docs/reference.md shows."""
    for block in re.split(r"^::: ", REFERENCE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        target = block.split()[0]
        members = re.search(r"members: \[(.*)\]", block)
        yield from (f"{target}.{name}" for name in members[1].split(", ")) if members else [target]


def public() -> list[str]:
    """The dotted names of what a program may call."""
    exported = [f"genssl.{name}" for name in genssl.__all__ if not name.startswith("_")]
    exported += [f"genssl.metrics.{name}" for name in genssl.metrics.__all__]
    methods = [f"{kind.__module__}.{kind.__name__}" for _, kind in METHODS.values()]
    found = [*exported, *methods, *functions(genssl.metrics), *functions(genssl.models), *reference()]
    return sorted(set(found))


def value_of(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_what_is_public_has_an_example() -> None:
    names = public()
    for name in (
        "genssl.train",
        "genssl.metrics.prdc",
        "genssl.models.samplers.ddim",
        "genssl.models.vae.VAE",
    ):
        assert name in names
    assert [name for name in names if ">>> " not in (inspect.getdoc(value_of(name)) or "")] == []


def modules_with_examples() -> list[str]:
    paths = (path for path in structure.ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
    parts = (path.relative_to(structure.ROOT.parent).with_suffix("").parts for path in paths)
    return sorted(".".join(names).removesuffix(".__init__") for names in parts)


def doctests(module: ModuleType) -> list[doctest.DocTest]:
    """The examples of a module, those of decorated functions among them, which doctest takes for imported."""
    finder = doctest.DocTestFinder()
    tests = {test.name: test for test in finder.find(module, module.__name__)}
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and value.__doc__:
            full = f"{module.__name__}.{name}"
            if full not in tests:
                tests |= {test.name: test for test in finder.find(inspect.unwrap(value), full, module)}
    return [test for test in tests.values() if test.examples]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").symlink_to(digits)
    module = importlib.import_module(name)
    tests = doctests(module)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    written = inspect.getsource(module).count(">>> ")
    assert (runner.tries, runner.failures) == (written, 0)
