"""Generated images to be measured: those of a run, or a folder of them, and what they are compared in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genssl.commands.screen import say, ticking
from genssl.commands.subject import Part, Subject, find_run, open_run, read_split
from genssl.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genssl.data.split import Split
    from genssl.eval.real_features import Space

FEW, MANY = 512, 10_000  # samples by default on a CPU, on a GPU
PIXELS_SIZE = 32  # that a folder's images are compared in by their pixels


def usual_number(device: "torch.device") -> int:
    """As many samples as the device can bear."""
    return MANY if device.type == "cuda" else FEW


def bearable(device: "torch.device") -> str:
    """Why there are as many samples as `usual_number`."""
    return f"what a {'GPU' if device.type == 'cuda' else 'CPU'} can bear"


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        subject: the run that makes them, or None.
        folder: that holds them, or None.
        device: where they are measured.
        space: what they are compared in.
        image_size: pixels a side.
        data: the real images.
        learnt: the data that the samples' maker learnt from.
        limit: how many of their train part it learnt from.
        seed: of the choice of these, and of a split that has no parts.
        skip_bad: leave unreadable files out.
    """

    subject: Subject | None
    folder: Path | None
    device: "torch.device"
    space: "Space"
    image_size: int
    data: str
    learnt: str
    limit: int | None
    seed: int
    skip_bad: bool

    def real(self, part: Part, most: int, seed: int) -> "Split":
        """Up to `most` real images, shuffled, on the device."""
        return self._read(self.data, part).take(most, seed).to(self.device)

    def training_images(self) -> "Split":
        """What the run learnt from, on the device."""
        return self._read(self.learnt, "train").take(self.limit, self.seed).to(self.device)

    def _read(self, data: str, part: Part) -> "Split":
        return read_split(data, part, self.image_size, self.seed, self.skip_bad)

    def images(
        self, n: int, options: Mapping[str, Any], seed: int, batch_size: int
    ) -> "tuple[Tensor, dict[str, Any]]":
        """Up to `n` samples, uint8 (n, 3, H, W), and how they were made."""
        if self.subject is not None:
            from genssl.eval.sample import sample

            with ticking("sampling") as tick:
                outcome, images = sample(
                    self.subject.method, n, seed=seed, batch_size=batch_size, tick=tick, options=options
                )
            return images, {name: value for name, value in outcome.values.items() if name != "images"}
        assert self.folder is not None
        for name in options:
            raise UserError(f"--{name} is for a run, and {self.folder} is a folder of images; leave it away")
        from genssl.data.heap import read_heap

        with ticking(f"reading {self.folder}") as tick:
            everything = read_heap(
                self.folder, self.image_size, self.skip_bad, lambda _, done, total: tick(done, total or done)
            )
        chosen = everything.take(min(n, len(everything)), seed)
        return chosen.images, {"folder": str(self.folder), "digest": everything.digest}


def open_source(
    reference: str, named: str | None, features: str | None, data: str | None, device: str, skip_bad: bool
) -> Source:
    """Find what REF, --checkpoint, --features and --data mean, before anything takes time.

    Raises:
        UserError: something is not there, or does not go together.
    """
    folder = None if named else folder_of_samples(reference)
    if folder is None:
        find_run(reference, named)
    elif data is None:
        raise UserError(f"what is {reference} to be compared with? name the real images with --data")
    if features not in {None, "pixels"}:
        find_run(features, None)
    from genssl.runtime import choose_device

    if folder is None:
        subject = open_run(reference, named, device)
        config = subject.info.config
        space, _ = feature_space(features, config.image_size, device)
        skip = skip_bad or config.skip_bad
        return Source(
            subject, None, subject.device, space, config.image_size, data or config.data, config.data,
            config.limit, config.seed, skip,
        )  # fmt: skip
    assert data is not None
    space, size = feature_space(features, None, device)
    where = choose_device(device)
    return Source(None, folder, where, space, size or PIXELS_SIZE, data, data, None, 0, skip_bad)


def folder_of_samples(reference: str) -> Path | None:
    """The folder that REF names, unless it names a run or a method."""
    from genssl import checkpoint, config, places

    path = Path(reference).expanduser()
    held = [
        place / name
        for place in (path, places.root() / reference)
        for name in (checkpoint.MODEL, checkpoint.CONFIG)
    ]
    if not path.is_dir() or any(file.exists() for file in held):
        return None
    return None if reference.lower().replace("-", "_") in config.methods() else path


def feature_space(reference: str | None, image_size: int | None, device: str) -> "tuple[Space, int | None]":
    """What --features means, and the size of images that it takes; None: any.

    Raises:
        UserError: it is a run for images of another size, or was left away and there is none.
    """
    from genssl.eval.real_features import PIXELS, Space, choose_encoder, why_chosen

    if reference == "pixels":
        return PIXELS, None
    if reference is None:
        chosen = choose_encoder(image_size)
        say(f"features of {why_chosen(chosen)}; --features names another")
        reference = str(chosen.folder)
    subject = open_run(reference, None, device)
    size = subject.info.config.image_size
    if image_size not in {None, size}:
        raise UserError(
            f"{subject.info.name} takes images of {size} pixels, and these have {image_size}; "
            "choose other --features, or pixels"
        )
    return Space(subject.info.name, subject.method.features, subject.info.digest), size
