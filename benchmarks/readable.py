"""How many generated digits a classifier reads with confidence, beside real ones.

`python -m benchmarks.readable [REF ...]`. The classifier is a small ResNet trained with labels on rendered
digits (seed 0, 20,000 images); nothing of it is shared with the models whose samples it reads. The real
images are those of the test part.
"""

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from genssl import checkpoint, runs
from genssl.data.load import load
from genssl.data.split import Split
from genssl.eval.sample import sample
from genssl.models.ddpm import DDPM
from genssl.models.resnet import WIDTHS, Encoder
from genssl.pixels import to_model
from genssl.runtime import choose_device, generator

CONFIDENT = 0.9  # probability of the class that is read
BATCH = 64


def main() -> None:
    """Train the classifier, read, and print a line for each source of images."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readable", description=__doc__)
    parser.add_argument("references", nargs="*", default=["ddpm", "vae"], help="whose samples are read")
    parser.add_argument("-n", type=int, default=512, help="samples of each")
    parser.add_argument("--samplers", nargs="+", default=["dpm++"], help="of a DDPM: dpm++, ddim, ancestral")
    parser.add_argument("--epochs", type=int, default=6, help="of the classifier's training")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    device = choose_device(asked.device)
    train, test = (load("synthetic", part).to(device) for part in ("train", "test"))
    start = time.perf_counter()
    classifier = trained(train, asked.epochs)
    print(f"classifier: {asked.epochs} epochs in {time.perf_counter() - start:.0f} s on {device}", flush=True)
    assert test.labels is not None
    confidence, classes = read(classifier, test.images)
    right = (classes == test.labels)[confidence >= CONFIDENT].float().mean().item()
    print(
        f"real test images: {(classes == test.labels).float().mean().item():.1%} read rightly, {right:.1%} of"
    )
    print(line("  those read with confidence", confidence, classes))
    for reference in asked.references:
        for sampler in asked.samplers:
            name, images = samples(reference, asked.n, sampler, device)
            print(line(name, *read(classifier, images)), flush=True)


def samples(reference: str, n: int, sampler: str, device: torch.device) -> tuple[str, Tensor]:
    """What is read, and uint8 images (n, 3, H, W) of it; `sampler` is for a DDPM."""
    path = runs.find(reference)
    method = checkpoint.load(path, device)
    options = {"sampler": sampler} if isinstance(method, DDPM) else {}
    outcome, images = sample(method, n, seed=0, batch_size=256, tick=lambda *_: None, options=options)
    how = outcome.values.get("sampler") or f"prior {outcome.values.get('prior')}"
    return f"samples of {path.name}, {how}", images.to(device)


def trained(train: Split, epochs: int) -> nn.Module:
    """A classifier of the split's digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = nn.Sequential(
            Encoder(WIDTHS["small"]), nn.Linear(8 * WIDTHS["small"], len(train.classes))
        )
    classifier = classifier.to(train.images.device, memory_format=torch.channels_last).train()
    steps = epochs * (len(train) // BATCH)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    assert train.labels is not None
    for epoch in range(epochs):
        order = torch.randperm(len(train), generator=generator(0, "order", epoch)).to(train.images.device)
        for rows in order.split(BATCH)[: len(train) // BATCH]:
            images = to_model(train.images[rows]).contiguous(memory_format=torch.channels_last)
            loss = cross_entropy(classifier(images), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


@torch.inference_mode()
def read(classifier: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The probability (N,) of the likeliest class, and that class (N,), of uint8 images (N, 3, H, W)."""
    found = [classifier(to_model(chunk)).softmax(1).max(1) for chunk in images.split(256)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def line(name: str, confidence: Tensor, classes: Tensor) -> str:
    """The share read with confidence, and how often the rarest and the commonest digit were read."""
    share = torch.bincount(classes, minlength=10) / len(classes)
    sure = (confidence >= CONFIDENT).float().mean().item()
    return (
        f"{name}: {sure:.1%} of {len(classes):,} with a probability of {CONFIDENT} or more; "
        f"each digit {share.min().item():.1%} to {share.max().item():.1%}"
    )


if __name__ == "__main__":
    main()
