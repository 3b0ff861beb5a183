"""The first five minutes as a plan: a VAE trained on rendered digits, and what the shipped weights can do."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from genssl import files, paths
from genssl.studies.plan import Plan, Step, evaluation

SHIPPED = ("ddpm", "simsiam")
NEIGHBORS = ("--limit", "2000", "--test-limit", "500")  # images that neighbors and classifiers are given
SAMPLES = ("-n", "128")  # whose fidelity is measured


def demo(minutes: float, device: str, seed: int) -> Plan:
    """Make the plan.

    Args:
        minutes: of training the VAE.
        device: as in --device.
        seed: of the VAE's training.
    """
    notes = (
        f"the VAE was trained for {minutes:g} minutes, on rendered house numbers",
        "the DDPM and SimSiam are the weights that come with genssl, trained on the same data before",
        "everything is measured on few images, so that it takes minutes",
    )
    steps = tuple(step.on(device) for step in _steps(minutes, seed))
    return Plan("genssl, the first five minutes", notes, steps)


def bring_shipped(folder: Path) -> None:
    """Copy the weights that ship into a folder of runs, each with a label that says so."""
    for method in SHIPPED:
        unfinished = folder / f".{method}"
        if (folder / method).exists():
            continue
        shutil.rmtree(unfinished, ignore_errors=True)
        _copy(paths.shipped_root() / method, unfinished)
        files.write_text(unfinished / paths.LABEL, "weights that come with genssl, not trained here\n")
        unfinished.rename(folder / method)


def _copy(source: Path, target: Path) -> None:
    # shutil.copytree would hide what the disk says, in a list of all files
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _steps(minutes: float, seed: int) -> Iterator[Step]:
    words = (
        "train", "vae", "--data", "synthetic", "--epochs", "200", "--seed", str(seed),
        "--learning-rate", "0.001", "--set", "decoder_variance=learned",
    )  # fmt: skip
    limited = ("--max-minutes", f"{minutes:g}", "--yes")
    yield Step("train a VAE", words, "vae/model.safetensors", trains="vae", how=limited)
    yield _step("draw its samples", "vae", "sample")
    yield _step("reconstruct test images", "vae", "reconstruct")
    yield _step("profile its latents", "vae", "latent-profile")
    yield _step("interpolate", "vae", "interpolate")
    yield _step("estimate its likelihood", "vae", "importance-ll", "-k", "50", "--limit", "200")
    yield _step("draw samples of a DDPM", "ddpm", "sample")
    # in pixels: the default features of thousands of images take longer than all the rest of the sweep
    sweep = ("--sweep", "16:256:80", "--queries", "32", "--features", "pixels")
    yield _step("noise images and come back", "ddpm", "reconstruct", *sweep)
    yield _step("interpolate through noise", "ddpm", "interpolate", "--nfe", "20")
    yield _step("look for neighbors", "simsiam", "knn-eval", *NEIGHBORS)
    yield _step("fit a linear layer", "simsiam", "linear-eval", *NEIGHBORS)
    for method in ("vae", "ddpm"):
        yield _step(f"measure the {method}'s samples", method, "fidelity", *SAMPLES, "--no-memorization")


def _step(title: str, method: str, command: str, *options: str) -> Step:
    return evaluation(title, command, method, *options)
