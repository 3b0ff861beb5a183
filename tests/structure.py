"""Measure the structure of the package: `python -m tests.structure` prints it, a test holds it.

A unit is a module or a folder directly under `genssl/`. Its level is one more than the highest level among
the units that it imports, so that the number of levels is the length of the longest chain.
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "genssl"
ROOT = Path(__file__).parent.parent / PACKAGE


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        name: dotted, without the package: "training.loop".
        path: of the file.
    """

    name: str
    path: Path

    @property
    def unit(self) -> str:
        """The module or folder directly under the package: "train"."""
        return self.name.split(".")[0]

    @cached_property
    def text(self) -> str:
        """The source."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.text)

    @cached_property
    def examples(self) -> set[int]:
        """Which lines hold examples in docstrings: they make no file or function longer."""
        numbers: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and "Examples:" in (
                ast.get_docstring(node) or ""
            ):
                start, end = node.body[0].lineno, node.body[0].end_lineno or 0
                text = self.text.splitlines()[start - 1 : end - 1]
                first = next(i for i, line in enumerate(text) if line.strip() == "Examples:")
                numbers |= set(range(start + first - 1, end))  # with the empty line before
        return numbers

    @property
    def lines(self) -> int:
        """Number of lines, without examples."""
        return self.text.count("\n") - len(self.examples)

    @property
    def comments(self) -> int:
        """Number of lines that hold a comment alone."""
        return sum(line.lstrip().startswith("#") for line in self.text.splitlines())

    @property
    def function_lines(self) -> list[int]:
        """Lines of each function, without examples."""
        functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]
        spans = [range(node.lineno, (node.end_lineno or 0) + 1) for node in functions]
        return [len(set(span) - self.examples) for span in spans]


def modules(root: Path = ROOT) -> dict[str, Module]:
    """Every module of the package that defines something, by name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        if path.stem != "__init__":
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name] = Module(name, path)
    return found


def imports_of(module: Module, known: dict[str, Module]) -> Iterator[str]:
    """The package's modules that a module imports, inside functions too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")[1:] if name.startswith(f"{PACKAGE}.") else []
            candidates = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            if (first := next((c for c in candidates if c in known), None)) and first != module.name:
                yield first


def graph(known: dict[str, Module]) -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    return {name: set(imports_of(module, known)) for name, module in known.items()}


def unit_graph(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Unit -> the other units that it imports."""
    units: dict[str, set[str]] = {}
    for name, targets in edges.items():
        unit = name.split(".")[0]
        units.setdefault(unit, set()).update({target.split(".")[0] for target in targets} - {unit})
    return units


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """One import cycle, or an empty list."""
    state: dict[str, int] = {}  # 1: on the current path, 2: done

    def visit(name: str, path: list[str]) -> list[str]:
        if state.get(name) == 1:
            return [*path[path.index(name) :], name]
        if state.get(name) == 2:
            return []
        state[name] = 1
        for target in sorted(edges[name]):
            if cycle := visit(target, [*path, name]):
                return cycle
        state[name] = 2
        return []

    return next((cycle for name in edges if (cycle := visit(name, []))), [])


def levels(units: dict[str, set[str]]) -> dict[str, int]:
    """Unit -> its level, from 1. The units must have no cycle."""
    found: dict[str, int] = {}

    def level(unit: str) -> int:
        if unit not in found:
            found[unit] = 1 + max((level(target) for target in units[unit]), default=0)
        return found[unit]

    for unit in units:
        level(unit)
    return found


def single_importers(edges: dict[str, set[str]]) -> list[str]:
    """The modules that exactly one other module imports."""
    importers = {name: sum(name in targets for targets in edges.values()) for name in edges}
    return sorted(name for name, count in importers.items() if count == 1)


def comment_share(chosen: list[Module]) -> float:
    """The share of full-line comments among the lines of some modules."""
    return sum(module.comments for module in chosen) / max(1, sum(module.lines for module in chosen))


def is_core(module: Module) -> bool:
    """Whether a student reads this module beside a paper."""
    return module.unit in {"models", "metrics"} or module.name == "training.loop"


def main() -> None:
    """Print the structure."""
    known = modules()
    edges = graph(known)
    edges.pop("__main__", None)
    lengths = sorted(length for module in known.values() for length in module.function_lines)
    sizes = sorted(module.lines for module in known.values())
    found = levels(unit_graph(edges))
    core = comment_share([module for module in known.values() if is_core(module)])
    rows = {
        "modules": len(known),
        "package lines": sum(path.read_text(encoding="utf-8").count("\n") for path in ROOT.rglob("*.py")),
        "levels": max(found.values()),
        "cycle": " -> ".join(find_cycle(edges)) or "none",
        "modules with one importer": len(single_importers(edges)),
        "modules under 40 lines": sum(size < 40 for size in sizes),
        "lines per module, median / largest": f"{statistics.median(sizes):g} / {sizes[-1]}",
        "functions, median lines": f"{statistics.median(lengths):g}",
        "functions, p90 lines": lengths[9 * len(lengths) // 10],
        "functions over 40 lines": sum(length > 40 for length in lengths),
        "full-line comments in models, metrics, training.loop": f"{core:.1%}",
    }
    for name, value in rows.items():
        print(f"{name:50} {value}")
    if "-v" in sys.argv:
        for level in range(max(found.values()), 0, -1):
            print(level, " ".join(sorted(unit for unit in found if found[unit] == level)))
        print("one importer:", " ".join(single_importers(edges)))


if __name__ == "__main__":
    main()
