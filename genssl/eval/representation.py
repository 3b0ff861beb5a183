"""What the evaluations of representations share: labelled splits, and checked features of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from genssl.data.split import Split
from genssl.errors import FAILED_RUN, UserError
from genssl.eval.require import check_size
from genssl.metrics.features import Tick, extract_together
from genssl.models.build import build
from genssl.models.method import Method

Encoder = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in the model's range -> (B, D)


def pixels(images: Tensor) -> Tensor:
    """Images as vectors, (B, 3 H W)."""
    return images.flatten(1)


def untrained(method: Method, device: torch.device) -> Method:
    """The same method with the initial weights of another seed, in eval mode."""
    return build(method.config.updated({"seed": method.config.seed + 1})).to(device).eval()


def represent(encoder: Encoder, split: Split, batch_size: int, tick: Tick) -> Tensor:
    """The features of a whole split, (N, D) float32 on its device; pixels as exact halves.

    Of several processes each extracts its share, and all get the whole: nothing is padded or dropped.

    Raises:
        UserError: a feature is not finite.
    """
    dtype = torch.float16 if encoder is pixels else torch.float32  # (2 u - 255) / 256 is exact in float16
    features = extract_together(encoder, split.images, batch_size, tick, dtype=dtype)
    if not features.sum(dtype=torch.float32).isfinite():
        raise UserError(
            f"the features of {split.part} images are not finite; the run has diverged, take another",
            FAILED_RUN,
        )
    return features


def require_labels(method: Method, train: Split, test: Split) -> tuple[Tensor, Tensor]:
    """The labels of both splits, (N,) and (M,), of the same classes.

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
    return train.labels, test.labels


def _check_classes(train: Split, labels: Tensor, test_labels: Tensor) -> None:
    known = set(labels.unique().tolist())
    if len(known) < 2:
        raise UserError(
            f"the {len(train)} train images of {train.name} are of one class; take more, or others"
        )
    unknown = [train.classes[label] for label in test_labels.unique().tolist() if label not in known]
    if unknown:
        raise UserError(
            f"none of the {len(train)} train images of {train.name} shows {', '.join(unknown)}, "
            "and test images do; raise --limit or choose another --data"
        )
