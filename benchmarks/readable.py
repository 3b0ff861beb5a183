"""How many generated digits two independent classifiers read with confidence, beside real ones.

`python -m benchmarks.readable [REF ...]` writes docs/results/readable.json. Both readers are trained with
labels on rendered digits (20,000 images) and share nothing with the models whose samples they read, nor with
each other: one is a small ResNet with plain cross-entropy, the other a convolutional network without
shortcuts, with label smoothing and random shifts, which makes it less sure of itself. Two references go with
the samples: the test digits, and the same images with their patches shuffled, whose digits are broken up.
Of a class-conditional run the classes are drawn in turn, and the share that is read as the class asked for is
said too, by class.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genssl import checkpoint, files, runs
from genssl.data.loading import load
from genssl.data.split import Split
from genssl.eval.sample import ALL, labels_of, sample
from genssl.eval.sensitivity import swap_patches
from genssl.models.ddpm import DDPM
from genssl.models.resnet import WIDTHS, Encoder
from genssl.pixels import to_model
from genssl.runtime import autocast, choose_device, choose_precision, describe, generator

RESULT = Path("docs/results/readable.json")
THRESHOLDS = (0.8, 0.9)  # probability of the class that is read
BATCH = 64
PAIRS = 8  # of patches that are swapped: all 16 of an image


# Whose images they are, how they were drawn, uint8 (n, 3, H, W), and their classes (n,) where they have some
Source = tuple[str, str, Tensor, Tensor | None]


@dataclass(frozen=True)
class Reader:
    """A classifier and how it is trained.

    Attributes:
        name: a key of the result.
        build: number of classes -> the network, images (B, 3, 32, 32) to logits.
        smoothing: of the labels.
        shift: largest random shift of a training image in each direction, in pixels.
        seed: of weights and order.
    """

    name: str
    build: Callable[[int], nn.Module]
    smoothing: float
    shift: int
    seed: int


def residual(classes: int) -> nn.Module:
    """A ResNet-18 of 16 channels in its first stage."""
    return nn.Sequential(Encoder(WIDTHS["small"]), nn.Linear(8 * WIDTHS["small"], classes))


def plain(classes: int) -> nn.Module:
    """Three pairs of convolutions with pooling, no shortcuts, and two linear layers with dropout."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        for channels in (before, after):
            layers += [nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, classes)]
    return nn.Sequential(*layers, *head)


READERS = (
    Reader("residual", residual, smoothing=0.0, shift=0, seed=0),
    Reader("plain", plain, smoothing=0.1, shift=2, seed=1),
)


def main() -> None:
    """Train the readers, read, print a line for each source of images, and write the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readable", description=__doc__)
    parser.add_argument("references", nargs="*", default=["ddpm", "vae"], help="whose samples are read")
    parser.add_argument("-n", type=int, default=512, help="samples of each")
    parser.add_argument("--sampler", default="dpm++", help="of a DDPM: dpm++, ddim, ancestral")
    parser.add_argument("--epochs", type=int, default=4, help="of each reader's training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    device = choose_device(asked.device)
    train, test = (load("synthetic", part).to(device) for part in ("train", "test"))
    content: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.readable", *sys.argv[1:]]),
        "device": describe(device), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "train_images": len(train), "test_images": len(test),
        "train_digest": train.digest, "test_digest": test.digest, "readers": {}, "rows": [],
    }  # fmt: skip
    assert test.labels is not None
    test_labels = test.labels
    networks = {}
    for reader in READERS:
        start = time.process_time()
        network = networks[reader.name] = trained(reader, train, asked.epochs)
        seconds = round(time.process_time() - start, 1)
        accuracy = interval(read(network, test.images)[1] == test_labels)
        settings = {"label_smoothing": reader.smoothing, "shift": reader.shift, "seed": reader.seed}
        details = {"epochs": asked.epochs, "cpu_seconds": seconds, "test_accuracy": accuracy}
        content["readers"][reader.name] = settings | details
        print(
            f"{reader.name}: {asked.epochs} epochs in {seconds:.0f} s; test digits {text(accuracy)}",
            flush=True,
        )
    sources: list[Source] = [("rendered test digits", "", test.images, test.labels)]
    sources.append(("the same, patches shuffled", "", swap_patches(test.images, PAIRS), None))
    sources += [samples(reference, asked.n, asked.sampler, device) for reference in asked.references]
    for name, how, images, labels in sources:
        row: dict[str, Any] = {"images": name, "how": how, "n": len(images), **shares(networks, images)}
        if labels is not None:
            row["as_asked"] = {key: as_asked(network, images, labels) for key, network in networks.items()}
        content["rows"].append(row)
        print(f"{name}{how and f', {how}'} ({len(images):,}):", flush=True)
        for column in (*networks, "both"):
            read_by = "; ".join(f"p >= {level} {text(row[column][str(level)])}" for level in THRESHOLDS)
            print(f"  {column}: {read_by}", flush=True)
        for column, found in row.get("as_asked", {}).items():
            least = min(found["classes"].items(), key=lambda item: item[1]["share"])
            print(f"  {column}: read as asked {text(found)}; least: {least[0]}, {text(least[1])}", flush=True)
    files.write_json(asked.out, content)


def samples(reference: str, n: int, sampler: str, device: torch.device) -> Source:
    """Images (n, 3, H, W) of a run; `sampler` is for a DDPM."""
    path = runs.find(reference)
    method = checkpoint.load(path, device)
    options = {"sampler": sampler} if isinstance(method, DDPM) else {}
    options |= {"class_label": ALL} if method.classes else {}
    outcome, images = sample(method, n, seed=0, batch_size=256, tick=lambda *_: None, options=options)
    values = outcome.values
    how = f"{values['sampler']}, {values['nfe']} calls" if "nfe" in values else f"prior {values['prior']}"
    labels = labels_of(method, ALL, range(n)).to(device) if method.classes else None
    how += (
        f", guidance {values['guidance']:g}" if method.classes and values.get("guidance") is not None else ""
    )
    return f"samples of {path.name}", how, images.to(device), labels


def as_asked(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The share of images that are read as their class (N,), and by class."""
    right = read(network, images)[1] == labels
    classes = {str(int(label)): interval(right[labels == label]) for label in labels.unique()}
    return {**interval(right), "classes": classes}


def trained(reader: Reader, train: Split, epochs: int) -> nn.Module:
    """The reader's network after training on the split's digits: Adam, one cycle of the rate."""
    device = train.images.device
    with torch.random.fork_rng():
        torch.manual_seed(reader.seed)  # of the weights, and of dropout on a CPU
        network: nn.Module = (
            reader.build(len(train.classes)).to(device).to(memory_format=torch.channels_last).train()
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        steps = epochs * (len(train) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        assert train.labels is not None
        for epoch in range(epochs):
            draws = generator(reader.seed, "order", epoch)
            order = torch.randperm(len(train), generator=draws).to(device)
            for rows in order.split(BATCH)[: len(train) // BATCH]:
                images = shifted(to_model(train.images[rows]), reader.shift, draws)
                with autocast(device, choose_precision("auto", device)):
                    logits = network(images.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits.float(), train.labels[rows], label_smoothing=reader.smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    network.eval()
    return network


def shifted(images: Tensor, most: int, draws: torch.Generator) -> Tensor:
    """Images (B, 3, H, W), each shifted by -most to most pixels down and across; edges are repeated."""
    if most == 0:
        return images
    height, width = images.shape[2:]
    offsets = torch.randint(2 * most + 1, (2, len(images), 1), generator=draws).to(images.device)
    rows, columns = (
        offset + torch.arange(side, device=images.device)
        for offset, side in zip(offsets, (height, width), strict=True)
    )
    padded = F.pad(images, (most,) * 4, mode="replicate")
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


@torch.inference_mode()
def read(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The probability (N,) of the likeliest class, and that class (N,), of uint8 images (N, 3, H, W)."""
    best = [network(to_model(chunk)).softmax(1).max(1) for chunk in images.split(256)]
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])


def shares(networks: dict[str, nn.Module], images: Tensor) -> dict[str, dict[str, Any]]:
    """By reader and threshold the share that is read; as "both", read by all of them as the same digit."""
    answers = {name: read(network, images) for name, network in networks.items()}
    confidence = torch.stack([probability for probability, _ in answers.values()])
    classes = torch.stack([digit for _, digit in answers.values()])
    same = (classes == classes[0]).all(0)
    return {
        **{name: {str(p): interval(answers[name][0] >= p) for p in THRESHOLDS} for name in networks},
        "both": {str(p): interval((confidence >= p).all(0) & same) for p in THRESHOLDS},
    }


def interval(chosen: Tensor, z: float = 1.96) -> dict[str, float]:
    """The share of `chosen` (N,) bool, and the ends of its 95 % interval (Wilson 1927)."""
    n, share = len(chosen), float(chosen.double().mean())
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # The ends of a share of 0 or 1 are these but for rounding
    return {
        "share": share,
        "low": max(0.0, min(share, center - half)),
        "high": min(1.0, max(share, center + half)),
    }


def text(measured: dict[str, float]) -> str:
    """A share with its interval."""
    return f"{measured['share']:.1%} ({measured['low']:.1%} to {measured['high']:.1%})"


if __name__ == "__main__":
    main()
