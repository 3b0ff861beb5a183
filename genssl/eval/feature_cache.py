"""Feature extraction for whole splits, and a disk cache for the features of real images."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genssl import distributed
from genssl.data.cache import cache_folder
from genssl.data.loader import fits
from genssl.data.rows import read_slice
from genssl.data.split import Split
from genssl.errors import FAILED_RUN, UserError, first_few
from genssl.eval.result import check_size
from genssl.features import extract
from genssl.files import read_tensors, write_tensors
from genssl.models.build import build
from genssl.models.method import Method
from genssl.pixels import with_channels
from genssl.run_info import RunInfo
from genssl.runtime import Tick

Encoder = Callable[[Tensor], Tensor]  # images (B, C, H, W) in the model's range -> (B, D)


def pixels(images: Tensor) -> Tensor:
    """Flatten images to vectors, (B, C H W)."""
    return images.flatten(1)


def encoder_of(method: Method) -> Encoder:
    """The features of a method; images of another number of channels are converted, in whole bytes."""
    channels = method.config.channels

    def encode(images: Tensor) -> Tensor:
        return method.features(with_channels(images, channels))

    return encode


def untrained_copy(method: Method, device: torch.device) -> Method:
    """The same network with the initial weights of another seed, in eval mode."""
    return build(method.config.updated({"seed": method.config.seed + 1})).to(device).eval()


def extract_features(
    encoder: Encoder, split: Split, batch_size: int, tick: Tick, device: torch.device | None = None
) -> Tensor:
    """The features of a whole split, (N, D) float32; pixels as exact halves.

    With several processes each extracts a shard, and all get the whole: nothing is padded or dropped.

    Args:
        encoder: images to vectors.
        split: on the device, or on the host, from where it is taken batch by batch.
        batch_size: images at a time.
        tick: called with (done, total).
        device: where the encoder is, and the features are; that of the images when None. Pixels that do not
            fit there stay on the host.

    Raises:
        UserError: a feature is not finite.
    """
    device, dtype = device or split.images.device, torch.float32
    if encoder is pixels:
        dtype = torch.float16  # (2 u - 255) / 256 is exact in float16
        # Twice the bytes of the images, while other features are few; all processes keep them alike
        lacks_room = not fits(dtype.itemsize * split.images.numel(), device)
        device = torch.device("cpu") if distributed.all_reduce_max(int(lacks_room)) else device
    features = extract(
        encoder, split.images, batch_size, tick, sharded=True, device=device, dtype=dtype, read=read_slice
    )
    if not features.sum(dtype=torch.float32).isfinite():
        raise UserError(
            f"the features of {split.part} images are not finite; the run has diverged, take another",
            FAILED_RUN,
        )
    return features


def require_labels(method: Method, train: Split, test: Split) -> tuple[Tensor, Tensor]:
    """The labels of both splits, (N,) and (M,), of the same classes, on the method's device.

    Raises:
        UserError: images of another size than the method's, a split without labels, a single class, or a
            class that is tested and never trained on.
    """
    for split in (train, test):
        check_size(method, split)
        if split.labels is None:
            raise UserError(
                f"the {split.part} part of {split.name} has no labels, and accuracy needs them; "
                "choose another --data"
            )
    if train.classes != test.classes:
        raise UserError(
            f"the train and test part of {train.name} have different classes; choose other --data"
        )
    assert train.labels is not None
    assert test.labels is not None
    _check_classes(train, train.labels, test.labels)
    return train.labels.to(method.device), test.labels.to(method.device)


def _check_classes(train: Split, labels: Tensor, test_labels: Tensor) -> None:
    known = set(labels.unique().tolist())
    if len(known) < 2:
        raise UserError(
            f"the {len(train)} train images of {train.name} are of one class; take more, or others"
        )
    unknown = [train.classes[label] for label in test_labels.unique().tolist() if label not in known]
    if unknown:
        missing = first_few(unknown, "classes")
        raise UserError(
            f"none of the {len(train)} train images of {train.name} shows {missing}, and test images do; "
            "raise --limit or choose another --data"
        )


FORMAT = "1"  # of the cache


@dataclass(frozen=True)
class FeatureSpace:
    """The feature extractor of a comparison.

    Attributes:
        name: "pixels", or the name of the run.
        encode: images (B, C, H, W) in the model's range -> (B, D).
        digest: SHA-256 of the weights and settings; empty for pixels.
    """

    name: str
    encode: Encoder
    digest: str = ""


PIXELS = FeatureSpace("pixels", pixels)


def space_of(info: RunInfo, method: Method) -> FeatureSpace:
    """The features of a run."""
    # Runs of equal weights may have other features: `features_t` says at which time a DDPM looks
    digest = hashlib.sha256(f"{info.digest}|{info.config.to_json()}".encode()).hexdigest()
    return FeatureSpace(info.name, encoder_of(method), digest)


def cached_features(
    space: FeatureSpace, split: Split, batch_size: int, tick: Tick, device: torch.device | None = None
) -> Tensor:
    """The features of a split, (N, D), from the cache or computed and cached.

    The key is the digests of the network and the images. A damaged file counts as absent; a folder that
    cannot be written gives a warning. Arguments are as for `extract_features`.

    Raises:
        UserError: a feature is not finite.
    """
    if not space.digest:
        return extract_features(space.encode, split, batch_size, tick, device)
    file = _file(space, split)
    cached = _read_cached(file, len(split))
    # All processes compute them together, or none does
    is_missing = distributed.all_reduce_max(int(cached is None))
    if cached is not None and not is_missing:
        return cached.to(device or split.images.device)
    features = extract_features(space.encode, split, batch_size, tick, device)
    metadata = {"network": space.digest, "data": split.name, "part": split.part, "data_digest": split.digest}
    try:
        write_tensors(file, {"features": features}, metadata)
    except OSError as error:
        warnings.warn(f"cannot keep features in {file.parent} ({error.strerror or error})", stacklevel=2)
    return features


def _file(space: FeatureSpace, split: Split) -> Path:
    key = hashlib.sha256(f"{FORMAT}|{space.digest}|{split.digest}".encode()).hexdigest()[:32]
    return cache_folder() / f"features-{key}.safetensors"


def _read_cached(file: Path, rows: int) -> Tensor | None:
    try:
        features = read_tensors(file)[0].get("features")
    except (UserError, OSError):
        return None
    usable = features is not None and features.ndim == 2 and len(features) == rows
    return features if usable else None
