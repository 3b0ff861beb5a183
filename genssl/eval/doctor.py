"""What a bug report needs to say about a machine."""

import shutil
from typing import Any

import torch

from genssl import __version__, places, runs
from genssl.data.cache import cache_folder
from genssl.runtime import choose_device, describe, has_fast_bf16


def examine() -> dict[str, Any]:
    """Versions, devices, folders and free space."""
    import platform
    from importlib import metadata

    device = choose_device("auto")
    cache = cache_folder()
    root = places.root()
    packages = ("torch", "torchvision", "numpy", "pillow", "safetensors", "pydantic", "typer", "rich")
    return {
        "genssl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: metadata.version(name) for name in packages},
        "device": describe(device),
        "cuda": torch.version.cuda or "none in this build",
        "bf16": "in hardware" if has_fast_bf16(device) else "not in hardware: fp32 is used",
        "threads": torch.get_num_threads(),
        "cache": str(cache),
        "cache_free_gib": round(_free(cache), 1),
        "checkpoints": str(root.absolute()),
        "runs": len(runs.known()),
    }


def _free(path: Any) -> float:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 2**30
