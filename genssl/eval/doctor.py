"""What a bug report needs to say about a machine; torch takes seconds to import, so only on demand."""

import runpy
import shutil
import subprocess
from importlib import util
from pathlib import Path
from typing import Any

from genssl import __version__, environment, paths, runs
from genssl.data.cache import cache_folder

PATIENCE = 10.0  # seconds that the NVIDIA driver may take to list its devices


def collect(*, with_torch: bool = False) -> dict[str, Any]:
    """Versions, devices, folders and free space.

    Args:
        with_torch: import torch, and add the device that --device auto takes, its precision and threads.
    """
    cache = cache_folder()
    root = paths.runs_root()
    return {
        "genssl": __version__,
        **environment.system(),
        "cuda": _cuda_version() or "none in this build of torch",
        "gpus": _gpus(),
        **(_ask_torch() if with_torch else {}),
        "cache": str(cache),
        "cache_free_gib": round(_free(cache), 1),
        "checkpoints": str(root.absolute()),
        "runs": len(runs.known()),
    }


def _ask_torch() -> dict[str, Any]:
    import torch

    from genssl.runtime import choose_device, describe, has_fast_bf16

    device = choose_device("auto")
    return {
        "device": describe(device),
        "bf16": "in hardware" if has_fast_bf16(device) else "not in hardware: fp32 is used",
        "threads": torch.get_num_threads(),
    }


def _cuda_version() -> str | None:
    """The CUDA that torch was built for, read from torch's own file of versions."""
    spec = util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        return None
    version = runpy.run_path(str(file)).get("cuda")
    return str(version) if version else None


def _gpus() -> list[str] | str:
    """The NVIDIA GPUs that the driver lists, whether torch can use them or not."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no NVIDIA driver"
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi failed ({type(error).__name__})"
    return done.stdout.strip().splitlines()


def _free(path: Path) -> float:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 2**30
