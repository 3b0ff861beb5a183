"""What images are compared in: pixels, or a run's features. Those of real images are kept between calls."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from genssl import checkpoint, places, runs
from genssl.checkpoint import RunInfo
from genssl.config import SelfSupervisedConfig
from genssl.data.cache import cache_folder
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.representation import Encoder, pixels, represent
from genssl.files import read_tensors, write_tensors
from genssl.metrics.features import Tick

FORMAT = "1"
SHIPPED = "simsiam"  # of the weights that ship, what features are compared of


@dataclass(frozen=True)
class Space:
    """Where images are compared.

    Attributes:
        name: "pixels", or the run's name.
        encode: images (B, 3, H, W) in the model's range -> (B, D).
        digest: of the network's weights and settings; empty for pixels.
    """

    name: str
    encode: Encoder
    digest: str = ""


PIXELS = Space("pixels", pixels)


def choose_encoder(image_size: int | None) -> RunInfo:
    """The run whose features are compared when nobody names one: the newest finished self-supervised run for
    images of this size (None: any) whose outputs did not collapse, else the newest that time stopped after an
    epoch or more, else the weights that ship.

    Raises:
        UserError: there is neither.
    """
    usable = [info for info in runs.known() if _is_usable(info) and _fits(info, image_size)]
    if usable:
        return max(reversed(usable), key=lambda info: info.state == "finished")
    shipped = places.shipped_root() / SHIPPED
    if (shipped / checkpoint.MODEL).exists() and _fits(info := checkpoint.inspect(shipped), image_size):
        return info
    size = "" if image_size is None else f" for images of {image_size} pixels"
    raise UserError(
        f"no finished self-supervised run{size} in {places.root()}/ to compare features of; train one with "
        "`genssl train simsiam`, or name any run, or pixels, with `genssl fidelity REF --features`"
    )


def _is_usable(info: RunInfo) -> bool:
    learned = info.finished and info.epoch > 0 and not info.metrics.get("collapsed")
    return learned and isinstance(info.config, SelfSupervisedConfig)


def why_chosen(encoder: RunInfo) -> str:
    """Which encoder `choose_encoder` took, and why."""
    if places.is_shipped(encoder.folder):
        return f"the {encoder.config.method} that comes with genssl"
    return f"{encoder.name}, the newest self-supervised run"


def _fits(info: RunInfo, image_size: int | None) -> bool:
    return image_size in {None, info.config.image_size}


def real_features(space: Space, split: Split, batch_size: int, tick: Tick) -> Tensor:
    """The features of a split, (N, D) on its device: as they were kept, else made now and kept.

    A network's features of real images are kept in the cache under the digests of both. A damaged file
    counts as absent. Where the folder cannot be written nothing is kept, with a warning.

    Raises:
        UserError: a feature is not finite.
    """
    if not space.digest:
        return represent(space.encode, split, batch_size, tick)
    file = _file(space, split)
    found = _kept(file, len(split))
    if found is not None:
        return found.to(split.images.device)
    features = represent(space.encode, split, batch_size, tick)
    about = {"network": space.digest, "data": split.name, "part": split.part, "data_digest": split.digest}
    try:
        write_tensors(file, {"features": features}, about)
    except OSError as error:
        warnings.warn(f"cannot keep features in {file.parent} ({error.strerror or error})", stacklevel=2)
    return features


def _file(space: Space, split: Split) -> Path:
    key = hashlib.sha256(f"{FORMAT}|{space.digest}|{split.digest}".encode()).hexdigest()[:32]
    return cache_folder() / f"features-{key}.safetensors"


def _kept(file: Path, rows: int) -> Tensor | None:
    try:
        features = read_tensors(file)[0].get("features")
    except (UserError, OSError):
        return None
    usable = features is not None and features.ndim == 2 and len(features) == rows
    return features if usable else None
