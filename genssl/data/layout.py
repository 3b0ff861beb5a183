"""From the names of image files to parts, classes and labels."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

PARTS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}

Components = tuple[str, ...]
Names = dict[str, Components]


@dataclass
class Layout:
    """What belongs where.

    Attributes:
        parts: "train" and "test", or "all" where the names know no parts; each a list of (name, label),
            sorted by label, then by name. Label is None for a part without classes.
        classes: the name of each label, numeric order where all are numbers.
        outside: names that belong to no part or to no class, and are left out.
    """

    parts: dict[str, list[tuple[str, int | None]]]
    classes: tuple[str, ...]
    outside: list[str] = field(default_factory=list)


def lay_out(names: Iterable[str]) -> Layout:
    """Work out the layout of relative names with forward slashes.

    Understood, all under one top folder or not: train/<class>/* and test/<class>/* (val or valid where
    there is no test), train/* and test/*, <class>/*, or images alone.
    """
    inside, outside = _descend({name: _components(*name.rpartition("/")[:2]) for name in names})
    groups = _parts(inside)
    outside += [name for name in inside if not any(name in group for group in groups.values())]
    labelled = {part: _classes_of(group, outside) for part, group in groups.items()}
    _drop_foreign_classes(labelled)
    found = {label for group in labelled.values() for label in group.values() if label is not None}
    classes = natural(found)
    rank = {name: i for i, name in enumerate(classes)}
    parts = {part: _sorted(group, rank) for part, group in labelled.items()}
    return Layout(parts, classes, sorted(outside))


@functools.lru_cache(maxsize=65536)
def _components(folder: str, slash: str) -> Components:
    """The folders above a file, and a place for its name: one object for all the files of a folder."""
    return (*folder.split("/"), "") if slash else ("",)


def natural(classes: Iterable[str]) -> tuple[str, ...]:
    """Class names in their order: by value where all are numbers, else by letter."""
    names = sorted(classes)
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def _descend(paths: Names) -> tuple[Names, list[str]]:
    """Strip top folders that hold most of the files alone: (what is inside, what lay beside them)."""
    outside: list[str] = []
    while len(_folders(paths)) == 1:
        inside = {name: path[1:] for name, path in paths.items() if len(path) > 1}
        if 2 * len(inside) <= len(paths):
            break
        outside += [name for name in paths if name not in inside]
        paths = inside
    return paths, outside


def _folders(paths: Names) -> set[str]:
    return {path[0] for path in paths.values() if len(path) > 1}


def _parts(paths: Names) -> dict[str, Names]:
    kinds = {PARTS.get(folder.lower()) for folder in _folders(paths)}
    held_out = "test" if "test" in kinds else "validation"
    if not {"train", held_out} <= kinds:
        return {"all": paths}
    return {"train": _within(paths, "train"), "test": _within(paths, held_out)}


def _within(paths: Names, kind: str) -> Names:
    return {
        name: path[1:] for name, path in paths.items() if len(path) > 1 and PARTS.get(path[0].lower()) == kind
    }


def _classes_of(group: Names, outside: list[str]) -> dict[str, str | None]:
    """The class of each name; where most names have none, none counts."""
    loose = [name for name, path in group.items() if len(path) == 1]
    if 2 * len(loose) > len(group):
        return dict.fromkeys(group)
    outside += loose
    return {name: path[0] for name, path in group.items() if len(path) > 1}


def _drop_foreign_classes(labelled: dict[str, dict[str, str | None]]) -> None:
    """A test folder that shares no class with the training folder has no labels (test/images/*)."""
    known = {label for label in labelled.get("train", {}).values() if label is not None}
    test = labelled.get("test", {})
    if known and known.isdisjoint(test.values()):
        labelled["test"] = dict.fromkeys(test)


def _sorted(group: dict[str, str | None], rank: dict[str, int]) -> list[tuple[str, int | None]]:
    places = [(name, None if label is None else rank[label]) for name, label in group.items()]
    return sorted(places, key=lambda place: (place[1] or 0, place[0]))
