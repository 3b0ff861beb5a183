"""The loaded run of a command, its data and samples; writing and printing of results."""

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genssl.commands._console import echo, hand_over, progress, show_values
from genssl.commands._options import Common, RealSplitName, RunSplitName, SplitName
from genssl.commands._outputs import Target, evaluation_name, finite, target_of_run
from genssl.data.registry import base_name, locate
from genssl.environment import command_line, launched_rank
from genssl.errors import UserError
from genssl.files import expand_home
from genssl.run_info import progress_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genssl.data.registry import Shape
    from genssl.data.split import Split
    from genssl.eval.feature_cache import FeatureSpace
    from genssl.eval.result import EvalResult
    from genssl.models.method import Method
    from genssl.run_info import RunInfo
    from genssl.settings import Config


@dataclass(frozen=True)
class LoadedRun:
    """A run, loaded on its device."""

    method: "Method"
    info: "RunInfo"
    device: "torch.device"

    def split(
        self,
        data: str | None,
        split: RunSplitName,
        limit: int | None = None,
        seed: int = 0,
        skip_bad: bool = False,
    ) -> "Split":
        """A split of `data` (default: the data of the run), on the device if it fits; see `read_for_run`."""
        from genssl.data.loader import place
        from genssl.data.subset import limit_split

        images = read_for_run(self.info.config, data or self.info.config.data, split, skip_bad)
        note_other_content(self.info, data, images)
        return place(limit_split(images, limit, seed), self.device)


def note_other_content(info: "RunInfo", data: str | None, split: "Split") -> None:
    """Say so where data are split otherwise than a run's, or are not the images any more that it has seen."""
    config = info.config
    note_overlap(info, data, split)
    # The limit is applied later to a train split from which nothing was held out
    is_cut = split.part == "train" and config.limit is not None and config.holdout == 0
    # Two processors render a digit alike but for the last bit of some pixels
    if data not in {None, config.data} or is_cut or config.data == "synthetic":
        return
    name = {"train": "data_digest", config.monitor_split: "monitor_digest"}.get(split.part)
    if name and info.training.get(name, split.digest) != split.digest:
        echo(
            f"note: the {split.part} images of {config.data} are not those that {info.name} had when it was "
            "trained; its images may have been changed, or another folder has this name"
        )


def note_overlap(info: "RunInfo", data: str | None, split: "Split") -> None:
    """Say so where images of a split may be among those that a run was trained on."""
    from genssl.data.loading import overlap_note

    if note := overlap_note(info.name, info.config, data, split):
        echo(f"note: {note}")


def read_split(
    data: str,
    split: SplitName,
    image_size: int = 32,
    seed: int = 0,
    skip_bad: bool = False,
    channels: int | None = None,
    zip_encoding: str | None = None,
    fit: "Shape" = "crop",
) -> "Split":
    """Load a split of a data set, with a progress bar."""
    from genssl.data.loading import load

    with progress(f"reading {data}") as tick:
        return load(
            data,
            split,
            image_size=image_size,
            seed=seed,
            skip_bad=skip_bad,
            channels=channels,
            zip_encoding=zip_encoding,
            fit=fit,
            progress=lambda _, done, total: tick(done, total or done),
        )


def read_for_run(config: "Config", data: str, split: RunSplitName, skip_bad: bool = False) -> "Split":
    """Load a split for a run to be evaluated on, with a progress bar.

    Of the run's own data, where it has a holdout, "train" is what it was trained on, without the images held
    out, which are "validation". Else "train" is the whole train split.

    Raises:
        UserError: there is no validation split, or as in `load`.
    """
    from genssl.data.loading import load_for_run

    skip_bad = skip_bad or config.skip_bad
    if split == "validation" and data != config.data:
        raise UserError(f"a validation split is of the run's own data, {config.data}; omit --data")
    if split == "validation" or (config.holdout > 0 and split == "train" and data == config.data):
        config = config.updated({"skip_bad": skip_bad})
        with progress(f"reading {data}") as tick:
            return load_for_run(config, split, lambda _, done, total: tick(done, total or done))
    return read_split(
        data, split, config.image_size, config.seed, skip_bad, channels=config.channels, fit=config.fit,
        zip_encoding=config.zip_encoding,
    )  # fmt: skip


def find_run(reference: str, named: str | None, data: str | None = None) -> "tuple[Path, RunInfo]":
    """Find the run folder or model file of REF and --checkpoint, and read its metadata. No torch.

    Its data are named by the path at which they are, see `registry.locate`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from genssl import config, run_info, runs

    method = config.config_class(reference).model_fields["method"].default if named else None
    path = runs.find(named or reference, method, data)
    info = run_info.inspect(path)
    source = locate(info.config.data, info.training.get("data_path"))
    return path, replace(info, config=info.config.updated({"data": source}))


def load_run(reference: str, named: str | None, device: str, data: str | None = None) -> LoadedRun:
    """Load the run of REF and --checkpoint, and print which one it is.

    Args:
        reference: REF; with --checkpoint, the method that the run must have.
        named: --checkpoint.
        device: --device.
        data: use the newest run of the method on these data.
    """
    path, info = find_run(reference, named, data)
    from genssl import checkpoint, distributed, paths
    from genssl.runtime import choose_device

    where = choose_device(device)
    if distributed.init(where):
        distributed.shutdown_at_exit(where)
    done: str = info.state
    if paths.is_shipped(info.folder):
        done = "weights that come with genssl"
    epochs = progress_of(info.epochs_trained, info.config.epochs)
    echo(f"using {path} ({info.config.method}, {info.config.data}, epoch {epochs}, {done})")
    return LoadedRun(checkpoint.load(path, where), info, where)


@dataclass(frozen=True)
class Evaluation:
    """A run that a command evaluates, with what it was asked for and where the result goes."""

    loaded: LoadedRun
    target: Target
    common: Common

    @property
    def method(self) -> "Method":
        """The run's method, in eval mode."""
        return self.loaded.method

    def split(self, name: RunSplitName, limit: int | None = None) -> "Split":
        """A split of --data, with at most `limit` images, or --limit where that is None."""
        asked = self.common
        return self.loaded.split(asked.data, name, limit or asked.limit, asked.seed, asked.skip_bad)

    def finish(self, result: "EvalResult", split: "Split | None" = None) -> None:
        """Write the figures and the numbers, and print the numbers."""
        save_and_print(self.loaded, result, self.target, self.common.as_json, split)


def open_evaluation(
    context: typer.Context, reference: str, common: Common, trained_on: str | None = None
) -> Evaluation:
    """Load the run of REF, and check where the result of this command goes.

    Args:
        context: of the command.
        reference: REF.
        common: the command's options.
        trained_on: use the newest run of the method on these data.
    """
    loaded = load_run(reference, common.checkpoint, common.device, trained_on)
    return Evaluation(loaded, target_of_run(loaded.info.folder, evaluation_name(context), common.out), common)


def save_and_print(
    loaded: LoadedRun,
    result: "EvalResult",
    target: Target,
    as_json: bool,
    split: "Split | None" = None,
) -> None:
    """Write the figures and the numbers of a run, and print the numbers."""
    write_result(loaded.info.name, provenance(loaded, split), result, target, as_json)


def write_result(
    name: str, details: Mapping[str, Any], result: "EvalResult", target: Target, as_json: bool
) -> None:
    """Write the figures, and a JSON file of the numbers with their provenance; print the numbers.

    Args:
        name: of the run or folder that was evaluated.
        details: the provenance, see `provenance`.
        result: the evaluation's.
        target: where the files go.
        as_json: print JSON instead of a table.
    """
    # All processes have the same result, and each gives it to its caller; the main one writes it
    is_taken = hand_over(result)
    if launched_rank() > 0:
        return
    values = finite({"command": command_line(), **details, **result.to_json()})
    target.write(values, result.figures, origin_of(values))
    if is_taken:
        return
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        show_values(f"{result.title}: {name}", result.values, result.notes, result.units)


def origin_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a figure: the command, and the run and its weights, if any."""
    return {name: str(values[name]) for name in ("command", "run", "weights_sha256") if name in values}


def provenance(loaded: LoadedRun, split: "Split | None") -> dict[str, Any]:
    """The run, weights, device and data that a number was measured on."""
    from genssl.runtime import describe

    details: dict[str, Any] = {
        "run": loaded.info.name,
        "method": loaded.info.config.method,
        "epoch": loaded.info.epochs_trained,
        "weights_sha256": loaded.info.digest,
        "device": describe(loaded.device),
    }
    if (held_out := loaded.info.held_out) is not None:
        details["held_out"] = held_out
    return details if split is None else details | origin(split)


def origin(split: "Split") -> dict[str, str]:
    """The images that a number was measured on."""
    return {"data": split.name, "part": split.part, "data_digest": split.digest}


ARRAYS = (".npz", ".npy", ".parquet")  # that hold samples
# Default number of samples on a CPU and on a GPU
FEW, MANY = 512, 10_000
PIXELS_SIZE, COLOR = 32, 3  # image size and channels of a folder of samples, as it is read
PRETRAINED = ("inception", "dinov2")  # the features of published weights
LARGEST = 299  # pixels per side that they see


def default_samples(device: "torch.device") -> int:
    """Default number of samples."""
    return MANY if device.type == "cuda" else FEW


def default_samples_reason(device: "torch.device") -> str:
    """The reason for `default_samples`."""
    return f"what a {'GPU' if device.type == 'cuda' else 'CPU'} can bear"


@dataclass(frozen=True)
class SampleSource:
    """The source of samples: a run that generates them, or a folder of images.

    Attributes:
        loaded: the run, or None.
        folder: the folder or archive, or None.
        device: of the measurement.
        space: the feature extractor.
        image_size: pixels per side.
        data: the real images.
        training_data: the data that the generator was trained on.
        limit: number of training images; None: all.
        seed: random seed of the limit, and of data without splits.
        skip_bad: skip unreadable files.
    """

    loaded: LoadedRun | None
    folder: Path | None
    device: "torch.device"
    space: "FeatureSpace"
    image_size: int
    data: str
    training_data: str
    limit: int | None
    seed: int
    skip_bad: bool

    def real(self, split: RealSplitName, n: int, seed: int) -> "Split":
        """At most `n` real images, shuffled, on the device if they fit."""
        from genssl.data.loader import place

        if split == "test" and (undivided := self._undivided()) is not None:
            echo(f"{undivided.name} has no parts: all of its {len(undivided):,} images are the real ones")
            return place(undivided.take(n, seed), self.device)
        if split == "all":
            from genssl.data.subset import pool

            everything = pool(self._read(self.data, "train"), self._read(self.data, "test"))
            return place(everything.take(n, seed), self.device)
        return place(self._read(self.data, split).take(n, seed), self.device)

    def training_images(self) -> "Split":
        """The images that the run was trained on, on the device if they fit; of a folder, the train split."""
        from genssl.data.loader import place

        undivided = self._undivided() if self.loaded is None else None
        train = self._read(self.training_data, "train") if undivided is None else undivided
        # With a holdout the limit has been applied before it
        is_limited = self.loaded is not None and self.loaded.info.config.holdout > 0
        return place(train if is_limited else train.take(self.limit, self.seed), self.device)

    def _undivided(self) -> "Split | None":
        """All real images, where they have no parts and nothing was trained on them."""
        from genssl.data.loading import load_undivided
        from genssl.data.subset import with_channels

        if self.loaded is not None and base_name(self.data) == base_name(self.training_data):
            return None
        # As the run reads its own images
        config = None if self.loaded is None else self.loaded.info.config
        ways: dict[str, Any] = {}
        if config is not None:
            ways = {"fit": config.fit, "zip_encoding": config.zip_encoding}
        split = load_undivided(self.data, image_size=self.image_size, skip_bad=self.skip_bad, **ways)
        return None if split is None else with_channels(split, COLOR if config is None else config.channels)

    def _read(self, data: str, split: RunSplitName) -> "Split":
        if self.loaded is not None:
            images = read_for_run(self.loaded.info.config, data, split, self.skip_bad)
            note_other_content(self.loaded.info, data, images)
            return images
        if split == "validation":
            raise UserError(f"{self.folder} is a folder of images, which held nothing out; use --split test")
        return read_split(data, split, self.image_size, self.seed, self.skip_bad, COLOR)

    def images(
        self, n: int, options: Mapping[str, Any], seed: int, batch_size: int
    ) -> "tuple[Tensor, dict[str, Any]]":
        """At most `n` samples, uint8 (n, C, H, W), and how they were generated."""
        if self.loaded is not None:
            from genssl.eval.sample import sample

            with progress("sampling") as tick:
                result, images = sample(
                    self.loaded.method, n, seed=seed, batch_size=batch_size, tick=tick, options=options
                )
            return images, {name: value for name, value in result.values.items() if name != "images"}
        assert self.folder is not None
        for name in options:
            raise UserError(f"--{name} is for a run, and {self.folder} is a folder of images; omit it")
        from genssl.data.loading import read_unlabeled

        with progress(f"reading {self.folder}") as tick:
            everything = read_unlabeled(
                self.folder, self.image_size, self.skip_bad, lambda _, done, total: tick(done, total or done)
            )
        chosen = everything.take(min(n, len(everything)), seed)
        return chosen.images, {"folder": str(self.folder), "digest": everything.digest}


def open_samples(reference: str, features: str | None, common: Common) -> SampleSource:
    """Resolve REF, --checkpoint, --features and --data, before anything takes time.

    Raises:
        UserError: one of them does not exist, or they do not fit each other.
    """
    named, data, device, skip_bad = common.checkpoint, common.data, common.device, common.skip_bad
    folder = None if named else folder_of_samples(reference)
    if folder is None:
        find_run(reference, named)
    elif data is None:
        raise UserError(f"{reference} is a folder of images; name the real images with --data")
    if features is not None and features not in {"pixels", *PRETRAINED}:
        find_run(features, None)
    from genssl.runtime import choose_device

    if folder is None:
        loaded = load_run(reference, named, device)
        config = loaded.info.config
        space, _ = feature_space(features, config.image_size, device)
        skip = skip_bad or config.skip_bad
        return SampleSource(
            loaded, None, loaded.device, space, config.image_size, data or config.data, config.data,
            config.limit, config.seed, skip,
        )  # fmt: skip
    assert data is not None
    space, size = feature_space(features, None, device)
    size = size or (_size_of_samples(folder) if features in PRETRAINED else PIXELS_SIZE)
    return SampleSource(None, folder, choose_device(device), space, size, data, data, None, 0, skip_bad)


def _size_of_samples(folder: Path) -> int:
    """The shorter side of the first image of a folder, up to LARGEST: these networks see images whole.

    Arrays are seen at PIXELS_SIZE.
    """
    from PIL import Image

    from genssl.data.archive import BadFile, members

    if folder.name.lower().endswith(ARRAYS):
        return PIXELS_SIZE
    # What cannot be read is reported when all are
    unreadable = (OSError, BadFile, Image.DecompressionBombError)
    for member in members(folder):
        with contextlib.suppress(*unreadable), Image.open(io.BytesIO(member.read())) as image:
            return min(LARGEST, *image.size)
    return PIXELS_SIZE


def folder_of_samples(reference: str) -> Path | None:
    """REF as a folder, an archive or an array of images; None where it is a run or a method."""
    from genssl import config, paths, run_info
    from genssl.data.registry import is_archive

    path = expand_home(reference)
    if path.is_file():
        return path if path.name.lower().endswith(ARRAYS) or is_archive(path) else None
    held = [
        folder / name
        for folder in (path, paths.runs_root() / reference)
        for name in (run_info.MODEL, run_info.CONFIG)
    ]
    if not path.is_dir() or any(file.exists() for file in held):
        return None
    return None if reference.lower().replace("-", "_") in config.methods() else path


def feature_space(
    reference: str | None, image_size: int | None, device: str
) -> "tuple[FeatureSpace, int | None]":
    """The feature extractor of --features, and its image size; None: any size.

    Raises:
        UserError: the run is for images of another size, or weights are missing.
    """
    from genssl.eval.feature_cache import PIXELS, space_of

    if reference == "pixels":
        return PIXELS, None
    if reference is None or reference in PRETRAINED:
        from genssl.eval.fidelity_features import default_features, pretrained_features
        from genssl.runtime import choose_device

        if reference is None:
            return default_features(choose_device(device)), None
        with progress(f"reading the weights of {reference} (MiB)") as tick:
            return pretrained_features(reference, choose_device(device), tick), None
    loaded = load_run(reference, None, device)
    size = loaded.info.config.image_size
    if image_size not in {None, size}:
        raise UserError(
            f"{loaded.info.name} takes images of {size} pixels, and these have {image_size}; "
            "choose other --features, or pixels"
        )
    return space_of(loaded.info, loaded.method), size
