"""Training beside other libraries, in three columns: the peer as it comes, the peer tuned, and genssl.

    python -m benchmarks.peers [--rounds 5] [--only VAE]       # writes docs/results/speed.json

All sides of a row are measured in turn, in one process. Tuned is what a strong user would write: bf16
autocast where the hardware multiplies it, channels_last, a fused optimizer, and no host read in a step.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import ddpm, simsiam, vae
from benchmarks.table import versions
from benchmarks.timing import SIDES, all_in_turn
from genssl import files
from genssl.runtime import choose_device, choose_precision, describe

RESULTS = Path("docs/results/speed.json")


Sides = Mapping[str, Callable[[], float]]


def rows(device: torch.device, only: str = "") -> Iterator[tuple[str, str, Sides]]:
    """What is trained, whose loop it is, and the three sides; those whose name has `only` in it."""
    makers: list[tuple[str, str, Callable[[], Sides]]] = [
        ("the course's VAE, end to end, batch 64", "a plain loop", lambda: vae.sides(device))
    ]
    for peer in ddpm.peers():
        training, forward = partial(ddpm.training_sides, peer), partial(ddpm.forward_sides, peer)
        makers.append(("a U-Net, training step, batch 16", peer.name, partial(training, device)))
        makers.append(("its forward pass, batch 16", peer.name, partial(forward, device)))
    for batch in simsiam.STEPS:
        name = f"SimSiam, ResNet-18, end to end, batch {batch}"
        makers.append((name, "lightly", partial(simsiam.sides, batch, device)))
    for what, peer_name, make in makers:
        if only in f"{what}, {peer_name}":
            yield what, peer_name, make()


def summary(what: str, peer: str, rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians in images per second, and the median and range of the ratios in the rounds."""
    row: dict[str, Any] = {"what": what, "peer": peer}
    row |= {f"{name}_images_per_second": statistics.median(values) for name, values in rates.items()}
    ours = rates[SIDES[2]]
    for name in SIDES[:2]:
        ratios = [our / their for our, their in zip(ours, rates[name], strict=True)]
        row[f"ratio_to_{name}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return row


def main(rounds: int = 5, only: str = "") -> None:
    warnings.simplefilter("ignore")
    device = choose_device("auto")
    details = {
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "precision": choose_precision("auto", device),
        "versions": versions("torch", "diffusers", "denoising-diffusion-pytorch", "lightly"),
    }
    saved = files.read_json(RESULTS) if RESULTS.exists() else {}
    # Rows of another machine or other versions do not stand in one table
    same = details == {name: saved.get(name) for name in details}
    measured = {(row["what"], row["peer"]): row for row in saved["rows"]} if same else {}
    for what, peer, sides in rows(device, only):
        row = {**summary(what, peer, all_in_turn(sides, rounds)), "rounds": rounds}
        measured[what, peer] = row
        print(row, flush=True)
        # Written after each row: a run that is cut keeps what it has
        files.write_json(RESULTS, {**details, "rows": list(measured.values())})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="measure the rows whose name has this text in it")
    main(**vars(parser.parse_args()))
