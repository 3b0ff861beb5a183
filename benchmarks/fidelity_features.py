"""Fit the default feature space of `genssl fidelity`, and show what it and its rivals notice.

    python -m benchmarks.fidelity_features --fit        # writes the projection into checkpoints/shipped
    python -m benchmarks.fidelity_features DATA ...     # the tables of disturbances, as JSON

The projection is fitted to rendered digits, which anybody can render again.
"""

import argparse
import json
from pathlib import Path

import torch

from genssl import checkpoint, features, files, paths, run_info
from genssl.data.load import load
from genssl.eval.feature_cache import FeatureSpace
from genssl.eval.fidelity_features import FILE, NETWORKS, default_features, fit_projection, raw_features
from genssl.eval.sensitivity import sensitivity

FITTED = 5000  # rendered training digits
RESULTS = Path("docs/results")


def fit() -> None:
    root = paths.shipped_root()
    encoder, denoiser = (checkpoint.load(root / name, "cpu") for name in NETWORKS)
    images = load("synthetic", "train").take(FITTED, 0).images
    with torch.inference_mode():
        raw = features.extract(lambda x: raw_features(encoder, denoiser, x), images)
    mean, projection = fit_projection(raw)
    metadata = {name: run_info.inspect(root / name).digest for name in NETWORKS}
    metadata["command"] = "python -m benchmarks.fidelity_features --fit"
    files.write_tensors(root / FILE, {"mean": mean, "projection": projection}, metadata)


def spaces() -> list[FeatureSpace]:
    """The default, and the shipped networks alone."""
    rivals = []
    for name in (*NETWORKS, "vae"):
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
    parser.add_argument("-n", type=int, default=976, help="images in a half")
    arguments = parser.parse_args()
    if arguments.fit:
        fit()
    for data in arguments.data:
        tables(data, arguments.n)


if __name__ == "__main__":
    main()
