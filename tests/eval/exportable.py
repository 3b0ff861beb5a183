"""Runs to export, on disk without training: norms that are neither zero nor the identity, as after some."""

from pathlib import Path

import torch

from genssl import checkpoint, config
from genssl.models.build import build
from genssl.models.method import Method
from genssl.runtime import generator

SMALL: dict[str, dict[str, object]] = {
    "simsiam": {"encoder": "small", "projector_dim": 8, "projector_hidden": 8, "predictor_hidden": 4},
    "vae": {"width": 8, "z_dim": 6, "mixture_components": 2},
    "ddpm": {"network": "tiny", "timesteps": 40, "scale_betas": True, "features_t": 5},
    "flow": {"network": "tiny"},
}


def awake(method: str, **changes: object) -> Method:
    """A small method with random weights and statistics, in eval mode."""
    found = build(config.make(method, {**SMALL[method], **changes}))
    source = generator(0, "test")
    with torch.no_grad():
        for name, tensor in found.state_dict().items():
            if tensor.ndim == 1 and name.endswith(("var", "weight")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
            elif tensor.is_floating_point() and (tensor.ndim == 1 or not tensor.any()):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=source))
            elif method == "vae" and tensor.is_floating_point():
                tensor.mul_(2.5)  # torch's own start lets what images differ in fade from layer to layer
    return found.eval().requires_grad_(False)


def saved(folder: Path, method: str, **changes: object) -> Path:
    """The folder of such a run."""
    checkpoint.save(awake(method, **changes), folder, epoch=3, finished=True, metrics={})
    return folder


def pixels(n: int, size: int = 32) -> torch.Tensor:
    """Random images, uint8 (n, 3, size, size)."""
    return torch.randint(256, (n, 3, size, size), generator=generator(1, "test"), dtype=torch.uint8)
