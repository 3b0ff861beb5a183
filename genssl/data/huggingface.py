"""Splits from data sets of the Hugging Face hub: .parquet files, and `hf:OWNER/NAME` through `datasets`."""

import contextlib
import importlib.util
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genssl.data.arrays import in_turn, number_labels, refuse_pointer, store
from genssl.data.cache import Progress
from genssl.data.decode import BadImage, Bytes, Observed, decode
from genssl.data.fit import Fit
from genssl.data.layout import PARTS
from genssl.data.registry import HUB, Shape, hub_name
from genssl.data.split import Split
from genssl.data.torchvision_sets import require_answer
from genssl.errors import FAILED_RUN, UserError, first_few

SUFFIX = ".parquet"
PICTURES = {".png", ".jpg", ".jpeg"}
FEW = 100  # images in a folder that may illustrate its .parquet files
SHARD = re.compile(r"-(\d{3,})-of-(\d{3,})")  # of a file's name, as `datasets` counts the files of a split
IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels", "fine_label", "target", "class", "y")
CONFIGS = {"ufldl-stanford/svhn": "cropped_digits"}  # where there are several and one is meant
INSTALL = "pip install 'genssl[hf]' installs it"


@dataclass(frozen=True)
class Table:
    """One part of a data set.

    Attributes:
        name: for messages.
        features: of the columns, as `datasets` describes them; empty where nobody did.
        kinds: the type of each column, in words.
        n: number of rows.
        column: the values of a column, one after the other.
    """

    name: str
    features: Mapping[str, Any]
    kinds: Mapping[str, str]
    n: int
    column: Callable[[str], Iterator[Any]]


def parquet_files(path: Path) -> list[Path]:
    """The .parquet files at a path: itself, or those in a folder unless it is one of images."""
    if not path.is_dir():
        return [path] if path.suffix.lower() == SUFFIX else []
    files: list[Path] = []
    images = 0
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder, name) for name in sorted(names) if name.lower().endswith(SUFFIX)]
        images += sum(os.path.splitext(name)[1].lower() in PICTURES for name in names)
        if images > FEW and not files:
            return []
    if files and images > FEW:
        raise UserError(f"{path} contains images and {SUFFIX} files; name a folder that contains one of them")
    return files


def read(
    path: Path,
    image_size: int,
    skip_bad: bool,
    progress: Progress | None = None,
    key: str = "",
    fit: Shape = "crop",
) -> dict[str, Split]:
    """Read a .parquet file, or a folder of them; arguments and results are those of `image_folder.read`.

    The name of a file or of its folder says its part (train-00000-of-00002.parquet, train/0000.parquet); one
    file alone is all there is.

    Raises:
        UserError: pyarrow is missing; files are damaged or missing; there is no column of images, or several.
    """
    groups, notes = ({"all": [path]}, []) if path.is_file() else _group(path)
    tables = {part: _table(path, files) for part, files in groups.items()}
    return _convert(key, path, tables, Fit(image_size, fit), skip_bad, progress, notes)


def _group(path: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each part, and notes on what is left out.

    Raises:
        UserError: a file of a part is missing, or the files are of several data sets.
    """
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for file in parquet_files(path):
        *folders, name = file.relative_to(path).parts
        stem = SHARD.split(name.removesuffix(SUFFIX))[0]
        split = next((word for word in (stem, *reversed(folders)) if _part(word)), stem)
        config = "/".join(folder for folder in folders if folder != split) or "."
        groups[config, split].append(file)
    configs = sorted({config for config, _ in groups})
    if len(configs) > 1:
        raise UserError(
            f"{path} holds several data sets ({', '.join(configs)}); name the folder of one of them"
        )
    for (_, split), files in groups.items():
        _require_all(path, split, files)
    return _choose({split: files for (_, split), files in groups.items()}, str(path))


def _part(name: str) -> str | None:
    """The part that a name means: of "partial-train" the train part."""
    return next((PARTS[word] for word in re.split(r"[-_.]", name.lower()) if word in PARTS), None)


def _require_all(path: Path, split: str, files: Sequence[Path]) -> None:
    counts = [match for file in files if (match := SHARD.search(file.name))]
    if counts and {int(match[1]) for match in counts} != set(range(int(counts[0][2]))):
        raise UserError(
            f"{path} has {len(counts)} of the {int(counts[0][2])} files of {split}; bring all of them there"
        )


def _choose(splits: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """Of splits by their names, train and test, or validation where there is no test; else all as one.

    Behind them notes on what is left out.
    """
    parts: dict[str, str] = {}
    for name in splits:
        if part := _part(name):
            parts.setdefault(part, name)
    held_out = "test" if "test" in parts else "validation"
    if {"train", held_out} <= set(parts):
        chosen = {"train": splits[parts["train"]], "test": splits[parts[held_out]]}
        used = {parts["train"], parts[held_out]}
    elif len(splits) == 1 or "train" in parts:
        used = {parts.get("train", next(iter(splits)))}
        chosen = {"all": splits[next(iter(used))]}
    else:
        raise UserError(f"{source} has the splits {', '.join(splits)}, and none is called train; name a file")
    unused = [name for name in splits if name not in used]
    return chosen, [f"these splits are left out: {', '.join(unused)}"] if unused else []


def _table(path: Path, files: Sequence[Path]) -> Table:
    parquet = _require("pyarrow.parquet", f"reading {path}")
    counts, schema = [], None
    for file in files:
        refuse_pointer(file)
        try:
            opened = parquet.ParquetFile(file)
        except Exception as error:
            raise UserError(f"{file} is damaged, or no {SUFFIX} file ({_line(error)}); restore it") from error
        if schema is not None and opened.schema_arrow.names != schema.names:
            raise UserError(f"{file} has other columns than {files[0].name}; name one of the files")
        schema = opened.schema_arrow
        counts.append(opened.metadata.num_rows)
    assert schema is not None

    def column(name: str) -> Iterator[Any]:
        for file in files:
            try:
                for batch in parquet.ParquetFile(file).iter_batches(batch_size=256, columns=[name]):
                    yield from batch.column(0).to_pylist()
            except OSError as error:
                raise UserError(f"{file} is damaged ({_line(error)}); restore it") from error

    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = (described.get("info") or {}).get("features") or {}
    kinds = {field.name: str(field.type) for field in schema}
    return Table(str(path), features, kinds, sum(counts), column)


def _require(module: str, what: str) -> Any:
    """Import a module of the extra `hf`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs {module.partition('.')[0]}; {INSTALL}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def image_column(table: Table) -> str:
    """The column of images: the one that says so, else one of bytes.

    Raises:
        UserError: there is none, or there are several of which none is called image or img.
    """
    names = [name for name, kind in table.features.items() if _type(kind) == "Image"]
    names = names or [name for name, kind in table.kinds.items() if "bytes: binary" in kind]
    names = names or [name for name, kind in table.kinds.items() if kind in {"binary", "large_binary"}]
    usual = [name for name in IMAGE_NAMES if name in names]
    if len(names) == 1 or usual:
        return (usual or names)[0]
    columns = ", ".join(f"{name} ({kind.split('<')[0]})" for name, kind in table.kinds.items())
    problem = "several columns of images" if names else "no column of images"
    raise UserError(
        f"{table.name} has {problem} among {columns}; give one image per row, in a column called image"
    )


def label_column(table: Table) -> tuple[str | None, tuple[str, ...] | None]:
    """The column of labels and the names of its classes; None where there are no labels, or no names."""
    classes = {name: kind["names"] for name, kind in table.features.items() if _type(kind) == "ClassLabel"}
    usual = [name for name in LABEL_NAMES if name in (classes or table.kinds)]
    if classes:
        name = (usual or [*classes])[0]
        return name, tuple(map(str, classes[name]))
    plain = [name for name in usual if re.fullmatch(r"u?int\d+|(large_)?string", table.kinds[name])]
    return (plain[0] if plain else None), None


def _type(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _content(cell: Any) -> bytes:
    """The file in a cell, which is bytes, or a mapping of bytes and path.

    Raises:
        BadImage: there is none in it.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None and isinstance(cell, dict) and cell.get("path") and os.path.isfile(cell["path"]):
        content = Path(cell["path"]).read_bytes()
    if not isinstance(content, bytes):
        raise BadImage("no image in it")
    return content


@dataclass(frozen=True)
class _Rows:
    """The images and labels of a table.

    Attributes:
        table: they are in.
        column: of the images.
        labels: of all rows, of which None and -1 mean that there is none; None: of no row.
        classes: how many the labels number; None where they are names themselves.
    """

    table: Table
    column: str
    labels: Sequence[Any] | None
    classes: int | None

    def look(self, observed: Observed) -> None:
        """Note what the images are, before any is decoded."""
        for cell in self.table.column(self.column):
            with contextlib.suppress(BadImage):
                observed.look(_content(cell))

    def bad(self, fit: Fit) -> dict[int, str]:
        """Why rows cannot be used, found by decoding all of them."""
        reasons = {}
        for i, cell in enumerate(self.table.column(self.column)):
            try:
                self._read(i, cell, replace(fit), 16)
            except BadImage as error:
                reasons[i] = str(error)
        return reasons

    def images(self, bad: Mapping[int, str], fit: Fit, bits: int) -> Iterator[Bytes]:
        """The images, (H, W, 3), of all rows that are not bad.

        Raises:
            UserError: another one is.
        """
        table = self.table
        for i, cell in enumerate(table.column(self.column)):
            if i in bad:
                continue
            try:
                yield self._read(i, cell, fit, bits)
            except BadImage as error:
                raise UserError(
                    f"row {i:,} of {table.n:,} in {table.name} cannot be used ({error}); repair it, or leave "
                    "such rows out with --skip-bad"
                ) from error

    def _read(self, i: int, cell: Any, fit: Fit, bits: int) -> Bytes:
        if self.labels is not None:
            label = self.labels[i]
            if label in {None, -1}:
                raise BadImage("it has no label")
            if self.classes is not None and label not in range(self.classes):
                raise BadImage(f"its label {label} is none of the {self.classes:,} classes, from 0 on")
        return decode(_content(cell), fit, Observed(bits))


def _convert(
    key: str,
    path: Path | str,
    tables: Mapping[str, Table],
    fit: Fit,
    skip_bad: bool,
    progress: Progress | None,
    notes: Sequence[str],
) -> dict[str, Split]:
    images, labels, notes = {}, {}, list(notes)
    column, classes = label_column(next(iter(tables.values())))
    count = None if classes is None else len(classes)
    parts = {
        part: _Rows(table, image_column(table), _labels(table, column, classes), count)
        for part, table in tables.items()
    }
    observed = Observed()
    for rows in parts.values():
        rows.look(observed)
    observed.bits = observed.needed_bits()
    for part, rows in parts.items():
        table = rows.table
        bad = rows.bad(fit) if skip_bad else {}
        if len(bad) == table.n:
            raise UserError(f"{table.name} has no usable image among {table.n:,} rows; name another file")
        if bad:
            some = ", ".join(f"row {i:,} ({reason})" for i, reason in [*bad.items()][:3])
            notes.append(f"{len(bad):,} of {table.n:,} rows in {table.name} are left out: {some}")
        read = partial(rows.images, bad, fit, observed.bits)
        images[part] = in_turn(read, table.n - len(bad), fit, f"reading {table.name}", progress)
        if rows.labels is not None:
            # Of a row without a label -1, until the row is read and refused
            usable = [-1 if value is None else value for i, value in enumerate(rows.labels) if i not in bad]
            labels[part] = np.array(usable)
    notes += observed.notices(sum(table.n for table in tables.values()))
    if classes is None:
        labels, classes = number_labels(labels)
    return store(key, path, images, labels, classes, fit, notes)


def _labels(table: Table, column: str | None, classes: tuple[str, ...] | None) -> list[Any] | None:
    """A column of labels, by the numbers of `classes` where these are given; None where there are no labels.

    Raises:
        UserError: this table names other classes.
    """
    if column is None or column not in table.kinds:
        return None
    values = [*table.column(column)]
    if all(value in {None, -1} for value in values):  # as in a test part whose labels are kept secret
        return None
    _, names = label_column(table)
    if classes is None or names is None or names == classes:
        return values
    if sorted(names) != sorted(classes):
        raise UserError(
            f"a part of {table.name} names the classes {first_few(names)}, and another {first_few(classes)}; "
            "write both with the same names"
        )
    numbers = {i: classes.index(name) for i, name in enumerate(names)}
    return [numbers.get(value, value) for value in values]


def read_hub(
    data: str, image_size: int, skip_bad: bool, progress: Progress | None, key: str, fit: Shape
) -> dict[str, Split]:
    """Read `hf:OWNER/NAME` or `hf:OWNER/NAME/CONFIG` through `datasets`, which downloads it to its own cache.

    Raises:
        UserError: `datasets` is missing, the hub cannot be reached or has no such data set, or as in `read`.
    """
    datasets = _require("datasets", data)
    name, config = hub_name(data)
    if progress:
        progress(f"downloading {data}", 0, None)
    try:
        if not datasets.config.HF_HUB_OFFLINE:  # the user's word that all is there already
            require_answer(datasets.config.HF_ENDPOINT)
        splits = datasets.load_dataset(name, config or _config(datasets, name))
    except UserError:
        raise
    except Exception as error:  # of a client of the web there is no end of types
        raise UserError(
            f"cannot get {data} from the Hugging Face hub ({_line(error)}); try again with a network, or "
            f"bring its {SUFFIX} files here and use --data FOLDER, or --data synthetic",
            FAILED_RUN,
        ) from error
    chosen, notes = _choose(dict(splits), data)
    tables = {part: _hub_table(datasets, data, split) for part, split in chosen.items()}
    return _convert(key, data, tables, Fit(image_size, fit), skip_bad, progress, notes)


def _config(datasets: Any, name: str) -> str | None:
    """The configuration that is meant without a name.

    Raises:
        UserError: there are several.
    """
    if name in CONFIGS:
        return CONFIGS[name]
    configs = datasets.get_dataset_config_names(name)
    if len(configs) > 1 and "default" not in configs:
        raise UserError(
            f"{HUB}{name} is several data sets ({', '.join(configs)}); name one of "
            f"them: {HUB}{name}/{configs[0]}"
        )
    return None


def _hub_table(datasets: Any, data: str, split: Any) -> Table:
    features = split.features.to_dict()
    for name, feature in features.items():
        if _type(feature) == "Image":
            split = split.cast_column(name, datasets.Image(decode=False))

    def column(name: str) -> Iterator[Any]:
        return (row[name] for row in split.select_columns([name]))

    kinds = {field.name: str(field.type) for field in split.features.arrow_schema}
    return Table(data, features, kinds, len(split), column)
