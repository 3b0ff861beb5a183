"""A folder of runs and studies, written by hand: the page reads files and trains nothing."""

import json
import struct
from pathlib import Path
from typing import Any

from PIL import Image

DIGEST = "d" * 64
ORIGIN = {"command": "genssl train it --epochs 3", "device": "cpu (Abacus, 2 threads)", "python": "3.11"}


def picture(file: Path, size: tuple[int, int] = (60, 40)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(file)
    return file


def numbers(file: Path, values: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))
    return file


def weights(
    file: Path,
    config: dict[str, Any],
    epoch: int = 3,
    *,
    finished: bool = True,
    metrics: Any = None,
    training: Any = None,
) -> None:
    """A model file without its tensors."""
    about = {"epoch": str(epoch), "finished": json.dumps(finished), "sha256": DIGEST, "format": "1"}
    about["metrics"] = json.dumps(metrics or {})
    about["config"] = json.dumps(config)
    about["training"] = json.dumps(training or {})
    header = json.dumps({"__metadata__": about}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)


def run(folder: Path, method: str, *, finished: bool = True, data: str = "../some/digits.tar.gz") -> Path:
    config = {"method": method, "data": data, "epochs": 3, "limit": 500}
    numbers(folder / "config.json", config)
    numbers(folder / "environment.json", ORIGIN)
    record = {"epoch": 3, "seconds": 3723.0, "images_per_second": 40.0}
    (folder / "history.jsonl").write_text(
        json.dumps({**record, "epoch": 2}) + "\n" + json.dumps(record) + "\n"
    )
    weights(folder / "model.safetensors", config, finished=finished)
    for name in ("wall-clock", "samples-over-epochs", "reconstructions-over-epochs", "curves"):
        picture(folder / f"{name}.png")
    return folder


def evaluation(folder: Path, name: str, values: dict[str, Any]) -> None:
    about = {"command": f"genssl {name} this", "weights_sha256": DIGEST, "device": "cpu", "notes": []}
    numbers(folder / "eval" / f"{name}.json", {**about, **values})
    picture(folder / "eval" / f"{name}.png")


def ablation(folder: Path, changes: list[dict[str, Any]]) -> None:
    def row(change: dict[str, Any], accuracy: float) -> dict[str, Any]:
        name = ", ".join(f"{key}={value}" for key, value in change.items()) or "baseline"
        measured = {"mean": accuracy, "std": None, "runs": 1}
        return {
            "arm": name, "changes": change, "verdict": f"verdict on {name}",
            "runs": [{"run": name, "device": "cpu", "collapsed": bool(change)}],
            "numbers": {"knn_accuracy_full": measured},
        }  # fmt: skip

    rows = [row({}, 0.5), *(row(change, 0.25) for change in changes)]
    about = {"command": "genssl ablate simsiam --all", "method": "simsiam", "data": "x/photos.tar"}
    numbers(folder / "ablate.json", {**about, "epochs": 3, "rows": rows, "notes": ["one seed per arm"]})
    picture(folder / "ablate.png")


MEASURES = [
    {"measure": "frechet_distance", "samples": 12.5, "low": 11.0, "high": 14.0, "floor": 3.25,
     "floor_low": 3.0, "floor_high": 3.5, "better": "lower"},
    {"measure": "precision", "samples": 0.625, "low": 0.5, "high": 0.75, "floor": 0.875,
     "floor_low": None, "floor_high": None, "better": "higher"},
]  # fmt: skip


def whole(place: Path) -> Path:
    """Everything that the assignment asks for."""
    vae, ddpm = run(place / "vae-digits", "vae"), run(place / "ddpm-digits", "ddpm")
    for name in ("sample", "latent-profile", "interpolate"):
        evaluation(vae, name, {"images": 64})
    half = {"level": 176.0, "low": 160.0, "high": 190.0}
    evaluation(ddpm, "noise-levels", {"t_star_pixels": half, "queries": 256})
    evaluation(ddpm, "sample", {"images": 64})
    ablation(
        place / "ablate-simsiam-digits",
        [{"stop_gradient": False}, {"predictor": "identity"}, {"projector_dim": 4096}],
    )
    return place
