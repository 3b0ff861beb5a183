"""The first five minutes as a plan: a VAE trained on rendered digits, and what the shipped weights can do."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from genssl import files, places
from genssl.studies.plan import Plan, Step

LABEL = "SHIPPED.txt"  # in a run's folder: it is a copy of the weights that ship
SHIPPED = ("ddpm", "simsiam")
NEIGHBOURS = ("--limit", "2000", "--test-limit", "500")  # images that neighbours and classifiers are given
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
    words = () if device == "auto" else ("--device", device)
    steps = tuple(
        Step(title, (*arguments, *words), makes, "vae" if title.startswith("train") else None)
        for title, makes, arguments in _steps(minutes, seed)
    )
    asked = {"minutes": minutes, "device": device, "seed": seed}
    return Plan(asked, "genssl, the first five minutes", notes, steps)


def bring_shipped(folder: Path) -> None:
    """Copy the weights that ship into a folder of runs, each with a label that says so."""
    for method in SHIPPED:
        unfinished = folder / f".{method}"
        if (folder / method).exists():
            continue
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(places.shipped_root() / method, unfinished)
        files.write_text(unfinished / LABEL, "weights that come with genssl, not trained here\n")
        unfinished.rename(folder / method)


def _steps(minutes: float, seed: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Titles, what they make, commands."""
    vae = (
        "--data", "synthetic", "--epochs", "200", "--max-minutes", f"{minutes:g}", "--seed", str(seed),
        "--learning-rate", "0.001", "--set", "decoder_variance=learned",
    )  # fmt: skip
    yield "train a VAE", "vae/model.safetensors", ("train", "vae", *vae)
    yield "draw its samples", "vae/eval/sample.json", ("sample", "vae")
    yield "reconstruct test images", "vae/eval/reconstruct.json", ("reconstruct", "vae")
    yield "profile its latents", "vae/eval/latent-profile.json", ("latent-profile", "vae")
    yield "interpolate", "vae/eval/interpolate.json", ("interpolate", "vae")
    likelihood = ("importance-ll", "vae", "-k", "50", "--limit", "200")
    yield "estimate its likelihood", "vae/eval/importance-ll.json", likelihood
    yield "draw samples of a DDPM", "ddpm/eval/sample.json", ("sample", "ddpm")
    sweep = ("reconstruct", "ddpm", "--sweep", "16:256:80", "--queries", "32")
    yield "noise images and come back", "ddpm/eval/noise-levels.json", sweep
    yield "interpolate through noise", "ddpm/eval/interpolate.json", ("interpolate", "ddpm", "--calls", "20")
    yield "look for neighbours", "simsiam/eval/knn-eval.json", ("knn-eval", "simsiam", *NEIGHBOURS)
    yield "fit a linear layer", "simsiam/eval/linear-eval.json", ("linear-eval", "simsiam", *NEIGHBOURS)
    for method in ("vae", "ddpm"):
        measure = ("fidelity", method, *SAMPLES, "--no-originals")
        yield f"measure the {method}'s samples", f"{method}/eval/fidelity.json", measure
