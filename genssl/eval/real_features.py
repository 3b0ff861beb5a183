"""What fidelity compares images in, and the features of real images, kept from one call to the next."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from genssl.data.cache import cache_folder
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.representation import Encoder, pixels, represent
from genssl.files import read_tensors, write_tensors
from genssl.metrics.features import Tick

FORMAT = "1"


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
