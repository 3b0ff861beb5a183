"""The images of a run: what it trains on, and what it is measured on meanwhile."""

from collections.abc import Iterable
from pathlib import Path

from genssl import run_info
from genssl.data.loading import RunPart, load_for_run, overlap_note
from genssl.data.registry import absolute
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.settings import Config
from genssl.training.events import Listener, Loading


def with_classes_of(config: Config, train: Split) -> Config:
    """The settings, with the number of classes of the data for a method that is trained on classes."""
    if not config.uses_labels or getattr(config, "num_classes", None) is not None:
        return config
    if train.labels is None:
        raise UserError(missing_labels_message(config.data, config))
    return config.updated({"num_classes": len(train.classes)})


def missing_labels_message(name: str, config: Config) -> str:
    """The message for data without labels and a method that needs them."""
    if config.needs_labels:
        return f"{name} has no labels, and a {config.method} learns them; choose data in folders of classes"
    choice = "online_probe" if getattr(config, "online_probe", False) else "conditional"
    return f"{name} has no labels, and {choice}=true needs them; omit it"


def load_splits(config: Config, listener: Listener, other: RunPart = "test") -> tuple[Split, Split]:
    """The images that a run of these settings trains on, and its test or validation split, on the host."""

    def progress(text: str, done: int, total: int | None) -> None:
        listener(Loading(text, done, total))

    train = load_for_run(config, "train", progress)
    if len(train) < 2:
        raise UserError(
            f"{config.data} leaves {len(train)} image to train on, and batch norm needs 2 or more"
        )
    return train, load_for_run(config, other, progress)


def notes_on_start(config: Config, held_out: Split) -> list[str]:
    """A note where the weights that a run starts from may have been trained on images held out from it."""
    if config.init is None:
        return []
    info = run_info.inspect(Path(config.init))
    before = info.config
    # One folder by two names
    is_same = (absolute(config.data) or config.data) == (absolute(before.data) or before.data)
    held_out_alike = (config.seed, config.limit, config.holdout) == (
        before.seed,
        before.limit,
        before.holdout,
    )
    if held_out.part == "validation" and is_same and not held_out_alike:
        return [f"{info.name} held out other images: validation images may be among its training images"]
    note = overlap_note(info.name, before, before.data if is_same else config.data, held_out)
    return [] if note is None else [note]


def require_data(configs: Iterable[Config], listener: Listener) -> None:
    """Load the data of several runs, each data set once, so that an error comes before the first run starts.

    Raises:
        UserError: as in `load`.
    """
    checked = set()
    for config in configs:
        # Whether images can be held out depends on how many of each class the limit and the seed leave
        rows = (config.limit, config.holdout, config.seed) if config.holdout else ()
        source = (config.data, config.image_size, config.skip_bad, config.zip_encoding, config.fit, *rows)
        if source not in checked:
            load_splits(config, listener)
            checked.add(source)
