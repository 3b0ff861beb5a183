"""From file names to parts and classes: which folders are the training part, the test part, and a class."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from genssl.errors import UserError, first_few

Components = tuple[str, ...]
Names = dict[str, Components]

HELD_OUT = ("test", "evaluation", "holdout", "validation")  # the first of them that is there is the test part
WORDS = {
    word: kind
    for kind, words in {
        "train": "train training trn trainval",
        "test": "test testing tst",
        "evaluation": "eval evaluation",
        "holdout": "holdout heldout",
        "validation": "val valid validation validate validating vali dev devel development",
        "unlabeled": "unlabeled unlabelled nolabel nolabels unsupervised pred predict prediction predictions",
        "fold": "fold folds kfold",
    }.items()
    for word in words.split()
}
# What these words mean as a name of a split, as in x_train
PARTS = {
    word: "test" if kind in {"evaluation", "holdout"} else kind
    for word, kind in WORDS.items()
    if kind in {"train", *HELD_OUT}
}
# Words that say nothing beside one of those above, and nothing of a class where they stand alone
NEUTRAL_TEXT = (
    "set sets data dataset datasets image images img imgs picture pictures pic pics photo photos sample "
    "samples split splits part dir folder folders file files public private seg"
)
NEUTRAL = frozenset(NEUTRAL_TEXT.split())
JOINED = re.compile(rf"({'|'.join(WORDS)})({'|'.join(NEUTRAL)})")  # trainset, testdata
TOGETHER = re.compile(
    r"(?<![a-z])(hold|held|un|k|no)[\W_]*(out|labell?ed|labels?|folds?)(?![a-z])", re.IGNORECASE
)
BORDERS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|[\W_]+")
# White space at the end of a name, also as `printable` spells it out
TRAILING = re.compile(r"(\s|\\x(09|0a|0d|a0|3000|200b|feff))+$")


@dataclass
class Layout:
    """What belongs where.

    Attributes:
        parts: "train" and "test", or "all" where the names know no parts; each a list of (name, label),
            sorted by label, then by name. Label is None for a part without classes.
        classes: the name of each label, numeric order where all are numbers.
        outside: names that belong to no part or to no class, and are left out.
        notes: what was decided that the names do not say plainly.
    """

    parts: dict[str, list[tuple[str, int | None]]]
    classes: tuple[str, ...]
    outside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def lay_out(names: Iterable[str]) -> Layout:
    """Work out the layout of relative names with forward slashes.

    Understood, all under one top folder or not: train/<class>/* and test/<class>/* (by any of the names in
    WORDS), folds, train/* and test/*, <class>/*, or images alone.

    Raises:
        UserError: a folder may be a part as well as a class.
    """
    notes: list[str] = []
    inside, outside = _descend({name: _components(*name.rpartition("/")[:2]) for name in names})
    groups = _parts(inside, notes)
    outside += [name for name in inside if not any(name in group for group in groups.values())]
    for group in groups.values():
        _refuse_parts_inside(group)
    labeled = {part: _classes_of(group, outside) for part, group in groups.items()}
    _drop_foreign_classes(labeled, notes)
    notes += _similar_classes(groups, labeled)
    classes = natural({name for group in labeled.values() for name in group.values() if name is not None})
    rank = {name: i for i, name in enumerate(classes)}
    parts = {part: _sorted(group, rank) for part, group in labeled.items()}
    return Layout(parts, classes, sorted(outside), notes)


@functools.lru_cache(maxsize=65536)
def _components(folder: str, slash: str) -> Components:
    """The folders above a file, and an empty one for its name: one object for all the files of a folder."""
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


@dataclass(frozen=True)
class PartName:
    """What the name of a folder says of a part.

    Attributes:
        kind: train, one of HELD_OUT, unlabeled or fold.
        rest: the words that say neither a part nor nothing, such as asl in asl_train.
        number: of a fold.
    """

    kind: str
    rest: str
    number: int = 0


def _joined(words: re.Match[str]) -> str:
    return f"{words[1]}{words[2]}".lower()


@functools.lru_cache(maxsize=65536)
def part_name(folder: str) -> PartName | None:
    """The part that a folder is by its name, if any: training_set, seg_test, ValImages, fold3."""
    words = [word.lower() for word in BORDERS.split(TOGETHER.sub(_joined, folder)) if word]
    kinds, rest, numbers = set(), [], []
    for word in words:
        joined = JOINED.fullmatch(word)
        if kind := WORDS.get(joined[1] if joined else word):
            kinds.add(kind)
        elif word.isdecimal():
            numbers.append(int(word))
        elif word not in NEUTRAL:
            rest.append(word)
    kind = "train" if kinds == {"train", "validation"} else "".join(kinds) if len(kinds) == 1 else ""
    if not kind or (kind == "fold" and not numbers):
        return None
    return PartName(kind, " ".join(rest), numbers[0] if numbers else 0)


def _parts(paths: Names, notes: list[str]) -> dict[str, Names]:
    """The names of each part, without the folder of the part; all of them as "all" where there are none."""
    folders = sorted(_folders(paths))
    named = {folder: part for folder in folders if (part := part_name(folder))}
    sets: dict[str, dict[str, list[str]]] = {}
    for folder, part in named.items():
        sets.setdefault(part.rest, {}).setdefault(part.kind, []).append(folder)
    complete = [kinds for kinds in sets.values() if _is_complete(kinds)]
    if len(complete) > 1:
        some = first_few([name for kinds in complete for names in kinds.values() for name in names])
        raise UserError(f"several sets of parts lie side by side ({some}); name the folder of one of them")
    if not complete:
        return _without_parts(paths, named, folders, notes)
    train, test = _sides(complete[0], named)
    plain = {name.lower() for name in (*train, *test)} == {"train", "test"}
    if not plain:
        notes.append(f"the train part is {first_few(train)}, the test part is {first_few(test)}")
    _mention_others(paths, {*train, *test}, notes)
    return {"train": _within(paths, train), "test": _within(paths, test)}


def _is_complete(kinds: dict[str, list[str]]) -> bool:
    held_out = any(kind in kinds for kind in HELD_OUT)
    return (held_out and ("train" in kinds or "fold" in kinds)) or (
        len(kinds.get("fold", ())) > 1 and "train" not in kinds
    )


def _sides(kinds: dict[str, list[str]], named: dict[str, PartName]) -> tuple[list[str], list[str]]:
    """The folders of the training part and of the test part; of folds alone the last one is for testing."""
    held_out = next((kinds[kind] for kind in HELD_OUT if kind in kinds), None)
    if held_out is not None:
        return kinds.get("train") or kinds["fold"], held_out
    folds = sorted(kinds["fold"], key=lambda folder: named[folder].number)
    return folds[:-1], folds[-1:]


def _without_parts(
    paths: Names, named: dict[str, PartName], folders: list[str], notes: list[str]
) -> dict[str, Names]:
    """Everything, or what is in train, without images that have no labels.

    Raises:
        UserError: a folder has the name of a part, and its counterpart is missing.
    """
    exact = {folder: part.kind for folder, part in named.items() if not part.rest}
    unlabeled = [folder for folder, kind in exact.items() if kind == "unlabeled"]
    labeled = [folder for folder in folders if folder not in unlabeled]
    if not unlabeled and not exact:
        return {"all": paths}
    if labeled and all(exact.get(folder) == "train" for folder in labeled):
        _mention_others(paths, set(labeled), notes)
        notes.append(f"there is no test part, so a part of {first_few(labeled)} is held out")
        return {"all": _within(paths, labeled)}
    asked = [folder for folder in labeled if folder in exact]
    if not asked and len(labeled) > 1:
        _mention_others(paths, set(labeled), notes)
        return {"all": {name: path for name, path in paths.items() if path[0] not in unlabeled}}
    others = [folder for folder in folders if folder not in (asked or unlabeled)]
    raise UserError(
        f"is {first_few(asked or unlabeled)} a part or a class? beside it there is "
        f"{first_few(others) or 'nothing else'}; "
        "give train/<class>/* and test/<class>/* for parts, or rename a class (such as class_train)"
    )


def _mention_others(paths: Names, used: set[str], notes: list[str]) -> None:
    """Note the folders that are no part, with how many images they have."""
    others = Counter(path[0] for path in paths.values() if len(path) > 1 and path[0] not in used)
    if others:
        listed = [f"{folder} ({n:,} images)" for folder, n in sorted(others.items())]
        notes.append(f"left out, being neither train nor test: {first_few(listed)}")


def _within(paths: Names, folders: list[str]) -> Names:
    """What is in one of the folders; a single folder there is no class if its name says nothing."""
    group = {name: path[1:] for name, path in paths.items() if len(path) > 1 and path[0] in folders}
    while len(tops := _folders(group)) == 1:
        top = "".join(tops)
        if top not in folders and not _says_nothing(top):
            break
        group = {name: path[1:] if len(path) > 1 else path for name, path in group.items()}
    return group


def _says_nothing(folder: str) -> bool:
    return all(word.lower() in NEUTRAL for word in BORDERS.split(folder) if word)


def _refuse_parts_inside(group: Names) -> None:
    """Refuse classes that are none.

    Raises:
        UserError: there are parts inside the classes, or all classes have the same folders inside.
    """
    kinds: dict[str, str] = {}
    inside: dict[str, set[str]] = {}
    for path in set(group.values()):
        if len(path) > 1:
            inside.setdefault(path[0], set()).update(path[1:2] if len(path) > 2 else ())
            parts = [(folder, part) for folder in path[1:-1] if (part := part_name(folder))]
            kinds |= {part.kind: folder for folder, part in parts if not part.rest}
    held_out = next((kinds[kind] for kind in HELD_OUT if kind in kinds), None)
    if "train" in kinds and held_out is not None:
        raise UserError(
            f"{kinds['train']} and {held_out} lie inside {first_few(sorted(inside))}; name one of these "
            "folders, or give train/<class>/* and test/<class>/*"
        )
    common = set.intersection(*inside.values()) if len(inside) > 1 else set()
    common = {folder for folder in common if not _says_nothing(folder)}
    if len(common) > 1 or (common and all(folders == common for folders in inside.values())):
        raise UserError(
            f"{first_few(sorted(inside))} have the same folders inside ({first_few(sorted(common))}): are "
            "they parts or classes? rename parts to train and test; move the images of a class up into its "
            "folder"
        )


def _label(folder: str) -> str:
    """The class of a folder: accents in one form of Unicode, without white space around."""
    return TRAILING.sub("", unicodedata.normalize("NFC", folder)).strip() or folder


def _classes_of(group: Names, outside: list[str]) -> dict[str, str | None]:
    """The class of each name; where most names have none, none counts."""
    loose = [name for name, path in group.items() if len(path) == 1]
    if 2 * len(loose) > len(group):
        return dict.fromkeys(group)
    outside += loose
    labels = {folder: _label(folder) for folder in _folders(group)}
    return {name: labels[path[0]] for name, path in group.items() if len(path) > 1}


def _similar_classes(groups: dict[str, Names], labeled: dict[str, dict[str, str | None]]) -> list[str]:
    """A note for folders that became one class, and one for classes that differ by case only."""
    notes = []
    folders: dict[str, set[str]] = {}
    for part, group in groups.items():
        for folder in _folders(group) if any(labeled[part].values()) else ():
            folders.setdefault(_label(folder), set()).add(folder)
    for label, names in sorted(folders.items()):
        if len(names) > 1:
            notes.append(f"{len(names)} spellings of a folder are one class, {label}")
    by_case: dict[str, list[str]] = {}
    for label in sorted(folders):
        by_case.setdefault(label.casefold(), []).append(label)
    # Capitals and small letters are classes of their own
    similar = [labels for labels in by_case.values() if len(labels) > 1 and len(labels[0]) > 1]
    if similar:
        shown = first_few([" and ".join(labels) for labels in similar])
        notes.append(f"classes that differ by case only: {shown}; rename them to make them one")
    return notes


def _drop_foreign_classes(labeled: dict[str, dict[str, str | None]], notes: list[str]) -> None:
    """A test folder that shares no class with the training folder has no labels (test/images/*)."""
    known = {label for label in labeled.get("train", {}).values() if label is not None}
    test = labeled.get("test", {})
    foreign = sorted({label for label in test.values() if label is not None})
    if known and known.isdisjoint(foreign):
        labeled["test"] = dict.fromkeys(test)
        if foreign:
            notes.append(f"the test part has no labels: no class of train is called {first_few(foreign)}")


def _sorted(group: dict[str, str | None], rank: dict[str, int]) -> list[tuple[str, int | None]]:
    images = [(name, None if label is None else rank[label]) for name, label in group.items()]
    return sorted(images, key=lambda image: (image[1] or 0, image[0]))
