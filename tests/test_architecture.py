"""The structure that docs/design.md describes, held by reading the source."""

import ast
import re
import subprocess
import sys

import pytest

from tests import structure

MODULES = structure.modules()
EDGES = {name: targets for name, targets in structure.graph(MODULES).items() if name != "__main__"}

# A unit imports from lower levels only; the same table stands in docs/design.md
LEVELS = {
    9: {"api", "cli"},
    8: {"commands"},
    7: {"studies"},
    6: {"training", "eval", "export", "report"},
    5: {"runs", "checkpoint"},
    4: {"data", "models", "metrics", "figures", "features", "run_info"},
    3: {"config", "runtime", "distributed", "files", "hub", "pixels"},
    2: {"settings"},
    1: {"errors", "paths", "environment"},
}
LEVEL_OF = {unit: level for level, units in LEVELS.items() for unit in units}
METHODS = {"vae", "ddpm", "simsiam", "dssl", "byol", "barlow_twins", "vicreg", "simclr", "moco"}
MOST_LINES = 500
MOST_MODULES = 153
MOST_SINGLE_IMPORTERS = 54
# To fall to 0: what is left of the first edition's words
MOST_BANNED, MOST_BANNED_HELP = 3, 0

# A name is the noun phrase of the field: no participle, no metaphor (docs/design.md, "Names and words")
BANNED_NAMES = {"told", "found", "place", "each", "own", "kept", "about", "sitting", "plate", "judge"}
BANNED_HELP = ("Of ", "So many", "So ", "Which ", "An image")


@pytest.mark.parametrize("name", EDGES)
def test_imports_point_down(name: str) -> None:
    unit = MODULES[name].unit
    assert unit in LEVEL_OF, f"{unit} has no level"
    for target in EDGES[name]:
        other = MODULES[target].unit
        assert other == unit or LEVEL_OF[other] < LEVEL_OF[unit], f"{name} imports {target}"


def test_modules_import_in_no_circle() -> None:
    assert structure.find_cycle(EDGES) == []


def test_a_circle_would_be_found() -> None:
    assert structure.find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_there_are_few_levels_and_modules() -> None:
    assert max(structure.levels(structure.unit_graph(EDGES)).values()) <= len(LEVELS)
    assert len(MODULES) <= MOST_MODULES
    single = structure.single_importers(EDGES)
    assert len(single) <= MOST_SINGLE_IMPORTERS, single


def test_methods_do_not_import_methods() -> None:
    for name, targets in EDGES.items():
        if name.startswith("models.") and name != "models.build":
            others = {target.split(".")[1] for target in targets if target.startswith("models.")}
            assert not others & METHODS - {name.split(".")[1]}, name


def test_training_knows_no_method_by_name() -> None:
    for name, module in MODULES.items():
        if module.unit == "training":
            assert not any(method.split("_")[0] in module.text.lower() for method in METHODS), name


def test_packages_re_export_nothing_but_the_python_interface() -> None:
    for path in structure.ROOT.glob("*/__init__.py"):
        if path.parent.name in {"data", "metrics"}:  # genssl.data.loading, genssl.metrics.frechet_distance
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert all(isinstance(node, ast.Expr) for node in tree.body), path


def test_files_and_functions_are_short() -> None:
    too_long = [name for name, module in MODULES.items() if module.lines > MOST_LINES]
    assert too_long == []
    lengths = sorted(length for module in MODULES.values() for length in module.function_lines)
    assert lengths[len(lengths) // 2] <= 10
    assert lengths[int(0.9 * len(lengths))] <= 25
    assert sum(length > 40 for length in lengths) <= 0.02 * len(lengths)


def test_what_a_student_reads_is_commented() -> None:
    for units in ({"models"}, {"metrics"}):
        assert structure.comment_share([m for m in MODULES.values() if m.unit in units]) >= 0.03, units
    assert structure.comment_share([MODULES["training.loop"]]) >= 0.03


def test_names_are_those_of_the_field() -> None:
    bad = []
    for name, module in MODULES.items():
        for node in ast.walk(module.tree):
            bound = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            bound = node.arg if isinstance(node, ast.arg) else bound
            if bound in BANNED_NAMES:
                bad.append(f"{name}:{getattr(node, 'lineno', 0)} {bound}")
    assert len(bad) <= MOST_BANNED, bad


def test_help_texts_are_sentences() -> None:
    pattern = re.compile(r'help="((?:[^"\\]|\\.)*)"')
    texts = [
        text
        for name in MODULES
        if name.startswith("commands.")
        for text in pattern.findall(MODULES[name].text)
    ]
    assert len(texts) > 50
    assert sum(text.startswith(BANNED_HELP) for text in texts) <= MOST_BANNED_HELP


def test_no_pickle_and_no_global_randomness() -> None:
    words = ("import pickle", "torch.save(", "torch.load(", "np.random", "torch.distributions")
    for name, module in MODULES.items():
        assert not any(word in module.text for word in words), name


def test_help_is_free_of_torch() -> None:
    heavy = ("torch", "numpy", "pydantic", "PIL")
    code = f"import sys, genssl.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
