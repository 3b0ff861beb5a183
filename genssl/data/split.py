"""A split of a data set: one uint8 tensor of images, with labels, masks and class names."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genssl.data.rows import loaded, read_rows
from genssl.runtime import generator


@dataclass(frozen=True)
class Split:
    """Images at rest.

    Attributes:
        images: uint8 (N, C, H, W), of 1 channel (gray) or 3.
        labels: int64 (N,), or None.
        classes: the name of each label.
        masks: uint8 (N, H, W), 0 for ground, 1 + i for classes[i], `pixels.IGNORE` for neither; or None.
        name: what to call the data set beside a number.
        part: "train", "validation" or "test"; "all" of data that are not divided, or what else images are.
        digest: of the content, so that results can name what they were measured on.
        notes: what was left out of a user's images, and what is odd about them.
        seed: that chose which images are for testing, of data without parts; None: the data have parts.

    Examples:
        >>> images, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6) % 2
        >>> split = Split(images, labels, ("cat", "dog"), name="pets", part="train", digest="0")
        >>> split.select(torch.tensor([1, 3, 5])).labels
        tensor([1, 1, 1])
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    part: str
    digest: str
    masks: Tensor | None = None
    notes: tuple[str, ...] = ()
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Split":
        """The same split with its tensors on `device`, in memory; cached images are checked as they are read.

        Raises:
            UserError: they differ from their checksums, or the file of the images was cut.
        """
        return replace(
            self,
            images=loaded(self.images, device),
            labels=None if self.labels is None else self.labels.to(device),
            masks=None if self.masks is None else loaded(self.masks, device),
        )

    def select(self, index: Tensor) -> "Split":
        """The rows of `index`, int64 (M,); raises as `to` does."""
        index = index.to(self.images.device)
        return replace(
            self,
            images=read_rows(self.images, index),
            labels=None if self.labels is None else self.labels[index],
            masks=None if self.masks is None else read_rows(self.masks, index),
        )

    def take(self, limit: int | None, seed: int = 0) -> "Split":
        """The first `limit` images of the split shuffled by `seed`; the split as it is when limit is None."""
        if limit is None:
            return self
        order = torch.randperm(len(self), generator=generator(seed, "limit"))
        digest = hashlib.sha256(f"{self.digest}|{limit}|{seed}".encode()).hexdigest()
        return replace(self.select(order[:limit]), digest=digest)
