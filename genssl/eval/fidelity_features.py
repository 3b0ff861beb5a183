"""The default feature space of sample quality: pinned, shipped with genssl, and chosen by what it notices.

Features that were trained to ignore color or blur cannot measure it. So these are of two networks that come
with genssl: an encoder trained by SimSiam, which sees shapes, and the middle of a DDPM's U-Net at two low
noise levels, which sees color, blur and noise. docs/metrics.md has the table that they were chosen by.
"""

import functools
import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genssl import checkpoint, paths, run_info
from genssl.errors import UserError
from genssl.eval.feature_cache import FeatureSpace
from genssl.files import read_tensors
from genssl.models.method import Method
from genssl.runtime import to_float64

NAME = "genssl-1"  # another number where the same images get other features
SIZE = 32  # pixels a side of the images that the networks were trained on
TIMES = (10, 50)  # zero-based noise levels of the DDPM, of 1,000
DIMENSIONS = 48  # more of them cost more bias for the same number of images
LEAST_SCALE = 1e-4  # of a feature that hardly varies
NETWORKS = ("simsiam", "ddpm")  # folders of shipped weights
FILE = "fidelity-features.safetensors"  # in the folder of shipped weights


class FidelityFeatures(nn.Module):
    """Features of both networks, standardized and projected on their leading principal components.

    Args:
        encoder: the shipped SimSiam.
        denoiser: the shipped DDPM.
        mean: (D,), of the networks' features for the rendered digits.
        projection: (D, 48), the principal components of the standardized features, the scale in them.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, encoder: Method, denoiser: Method, mean: Tensor, projection: Tensor) -> None:
        super().__init__()
        self.encoder, self.denoiser = encoder, denoiser
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of any size, in the model's range -> (B, 48)."""
        return (raw_features(self.encoder, self.denoiser, images) - self.mean) @ self.projection


def raw_features(encoder: Method, denoiser: Any, images: Tensor) -> Tensor:
    """The features of both networks side by side, (B, D); images of another size are resized to 32 pixels."""
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(-1, 1)
    levels = [denoiser.features_at(images, t) for t in TIMES]
    return torch.cat([encoder.features(images), *levels], 1)


def fit_projection(features: Tensor, dimensions: int = DIMENSIONS) -> tuple[Tensor, Tensor]:
    """The mean (D,), and the projection (D, dimensions) of standardized (N, D) on components."""
    features = to_float64(features)
    mean, scale = features.mean(0), features.std(0).clamp(min=LEAST_SCALE)
    _, _, components = torch.linalg.svd((features - mean) / scale, full_matrices=False)
    return mean.float(), (components[:dimensions].T / scale[:, None]).float()


@functools.cache
def default_features(device: torch.device) -> FeatureSpace:
    """The pinned feature space.

    Raises:
        UserError: the shipped weights are missing, or others than the projection was fitted to.
    """
    root = paths.shipped_root()
    networks = [root / name for name in NETWORKS]
    missing = [path for path in (*networks, root / FILE) if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]} is missing; sample quality needs it, install genssl again")
    tensors, metadata = read_tensors(root / FILE)
    digests = [run_info.inspect(folder).digest for folder in networks]
    if [metadata.get(name) for name in NETWORKS] != digests:
        raise UserError(
            f"{root / FILE} was fitted to other weights than those beside it; install genssl again"
        )
    encoder, denoiser = (checkpoint.load(folder, device) for folder in networks)
    features = FidelityFeatures(encoder, denoiser, tensors["mean"], tensors["projection"]).to(device).eval()
    digest = hashlib.sha256("|".join([NAME, *digests, metadata["sha256"]]).encode()).hexdigest()
    return FeatureSpace(NAME, features, digest)
