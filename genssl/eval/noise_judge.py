"""Whether a reconstruction is still the image that it was: identity in a whole split, class by kNN."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data.batches import chunks
from genssl.data.split import Split
from genssl.metrics.knn import knn_predict
from genssl.metrics.recovery import identity_kept, mean_squared_error
from genssl.pixels import to_model

Encoder = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in the model's range -> features (B, D)
NEIGHBOURS = 200


@dataclass(frozen=True)
class Judge:
    """Compares reconstructions with every candidate.

    Attributes:
        spaces: by name, "pixels" and perhaps "features": images to vectors (B, D).
        candidates: the vectors of the whole split in each space, (N, D).
        bank: labelled vectors (M, D) in the last space, for classes; None: no classes.
        bank_labels: (M,), or None.
        classes: how many.
    """

    spaces: dict[str, Encoder]
    candidates: dict[str, Tensor]
    bank: Tensor | None
    bank_labels: Tensor | None
    classes: int

    @property
    def class_space(self) -> str:
        """Where classes are looked for."""
        return list(self.spaces)[-1]

    def __call__(self, x: Tensor, noised: Tensor, restored: Tensor, own: Tensor) -> dict[str, Tensor]:
        """What is measured of images (B, 3, H, W), candidates `own` (B,): by name, (B,) each, on the CPU.

        "mse" and "noised_mse", whether identity is kept by the name of the space, "predicted" classes.
        """
        found = {"mse": mean_squared_error(restored, x), "noised_mse": mean_squared_error(noised, x)}
        vectors = {name: space(restored) for name, space in self.spaces.items()}
        for name, candidates in self.candidates.items():
            found[name] = identity_kept(candidates, vectors[name], own)
        if self.bank is not None:
            found["predicted"] = self.predict(vectors[self.class_space])
        return {name: values.cpu() for name, values in found.items()}

    def predict(self, vectors: Tensor) -> Tensor:
        """Classes by kNN of vectors (B, D) in the last space: (B,)."""
        assert self.bank is not None
        assert self.bank_labels is not None
        k = min(NEIGHBOURS, len(self.bank))
        return knn_predict(self.bank, self.bank_labels, vectors, self.classes, k)


def prepare(split: Split, encoder: Encoder | None, bank_split: Split | None, batch_size: int) -> Judge:
    """A judge with the whole `split` as candidates, and `bank_split` for classes where both have labels.

    Features are compared as kNN does, by cosine: they are made unit length.
    """
    spaces: dict[str, Encoder] = {"pixels": pixels}
    if encoder is not None:
        spaces["features"] = lambda images: F.normalize(encoder(images).float(), dim=1)
    candidates = {name: _represent(split, space, batch_size) for name, space in spaces.items()}
    if bank_split is None or bank_split.labels is None or split.labels is None:
        return Judge(spaces, candidates, None, None, 0)
    bank = _represent(bank_split, list(spaces.values())[-1], batch_size)
    return Judge(spaces, candidates, bank, bank_split.labels, len(bank_split.classes))


def pixels(images: Tensor) -> Tensor:
    """Images as vectors, (B, 3 H W)."""
    return images.flatten(1)


def _represent(split: Split, space: Encoder, batch_size: int) -> Tensor:
    """A whole split's vectors, (N, D); pixels in half precision, which holds (2 u - 255) / 256 exactly."""
    parts = []
    for rows in chunks(len(split), batch_size):
        vectors = space(to_model(split.images[rows]))
        parts.append(vectors.half() if space is pixels else vectors)
    return torch.cat(parts)
