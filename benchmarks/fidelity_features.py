"""Fit the default feature space of `genssl fidelity`, and show what it and its rivals notice.

    python -m benchmarks.fidelity_features --fit [--denoiser REF]   # writes into checkpoints/shipped
    python -m benchmarks.fidelity_features DATA ...                 # the tables of disturbances, as JSON

The projection is fitted to rendered digits, which anybody can render again.
"""

import argparse
import json
from pathlib import Path

import torch

from genssl import checkpoint, features, files, paths, run_info, runs
from genssl.data.loading import load
from genssl.eval.feature_cache import FeatureSpace
from genssl.eval.fidelity_features import (
    ENCODER,
    FILE,
    default_features,
    denoiser_of,
    fit_projection,
    raw_features,
    way_down,
)
from genssl.eval.sensitivity import sensitivity

FITTED = 5000  # rendered training digits
RESULTS = Path("docs/results")


def fit(reference: str | None) -> None:
    """Fit the projection to the shipped encoder and a DDPM, by default the one that is in the file."""
    root = paths.shipped_root()
    encoder = checkpoint.load(root / ENCODER)
    if reference is None:
        tensors, metadata = files.read_tensors(root / FILE)
        denoiser, digest = denoiser_of(tensors, metadata), metadata["ddpm"]
    else:
        folder = runs.find(reference)
        denoiser, digest = checkpoint.load(folder), run_info.inspect(folder).digest
    images = load("synthetic", "train").take(FITTED, 0).images
    with torch.inference_mode():
        raw = features.extract(lambda x: raw_features(encoder, denoiser, x), images)
    mean, projection = fit_projection(raw)
    about = {
        ENCODER: run_info.inspect(root / ENCODER).digest,
        "ddpm": digest,
        "config": denoiser.config.model_dump_json(),
        "command": "python -m benchmarks.fidelity_features --fit",
    }
    content = {"mean": mean, "projection": projection, **way_down(denoiser)}
    files.write_tensors(root / FILE, content, about)


def spaces() -> list[FeatureSpace]:
    """The default, and the shipped networks alone."""
    rivals = []
    for name in ("simsiam", "ddpm", "vae"):
        info = run_info.inspect(paths.shipped_root() / name)
        rivals.append(
            FeatureSpace(f"shipped {name}", checkpoint.load(info.folder, "cpu").features, info.digest)
        )
    return [default_features(torch.device("cpu")), *rivals]


def tables(data: str, images: int) -> None:
    real = load(data, "test")
    real = real.take(min(2 * images, len(real)), 0)
    results = [sensitivity(real, space, 256, lambda *_: None).to_json() for space in spaces()]
    content = {
        "data": real.name,
        "split": "test",
        "data_digest": real.digest,
        "device": "cpu",
        "spaces": results,
    }
    files.write_json(RESULTS / f"sensitivity-{real.name.split('.')[0]}.json", content)
    print(json.dumps(content, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--denoiser", metavar="REF", help="of --fit: a DDPM; default: the one of the file")
    parser.add_argument("-n", type=int, default=976, help="images in a half")
    arguments = parser.parse_args()
    if arguments.fit:
        fit(arguments.denoiser)
    for data in arguments.data:
        tables(data, arguments.n)


if __name__ == "__main__":
    main()
