"""Measures: tensors in, numbers out. They take features, labels or images of any network.

`linear_probe.linear_probe` and `sharpness.sharpness` are called as their modules are, and so are not here.

Examples:
    >>> import torch
    >>> from genssl import metrics
    >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> metrics.frechet_distance(x, x) < 1e-9
    True
"""

from genssl.metrics.collapse import output_scale, output_std, rankme
from genssl.metrics.fidelity import PRDC, authenticity, frechet_distance, kernel_distance, prdc
from genssl.metrics.knn import class_accuracy, confusion_matrix, knn_predict, standard_error
from genssl.metrics.latents import active_units, effective_sample_size
from genssl.metrics.linear_probe import ProbeResult, ProbeSettings
from genssl.metrics.reconstruction import mean_squared_error, psnr
from genssl.metrics.sharpness import diversity, mean_sharpness

__all__ = [
    "PRDC",
    "ProbeResult",
    "ProbeSettings",
    "active_units",
    "authenticity",
    "class_accuracy",
    "confusion_matrix",
    "diversity",
    "effective_sample_size",
    "frechet_distance",
    "kernel_distance",
    "knn_predict",
    "mean_sharpness",
    "mean_squared_error",
    "output_scale",
    "output_std",
    "prdc",
    "psnr",
    "rankme",
    "standard_error",
]
