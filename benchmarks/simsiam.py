"""Training SimSiam end to end, views included: lightly's parts in the loop of its guide, against genssl's.

The same ResNet-18, heads, batch size, optimizer and images. lightly's side is fp32 with a DataLoader of two
workers over PIL images. On a GPU also the seconds of genssl's own epoch at CIFAR-10's size:
`python -m benchmarks.simsiam --device cuda`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.augment import their_transform
from benchmarks.table import spread, versions
from benchmarks.timing import SIDES
from genssl.config import SimSiamConfig
from genssl.data.augment.views import choose_views
from genssl.data.split import Split
from genssl.data.synthetic import render
from genssl.models.build import build
from genssl.runtime import autocast, choose_device, choose_precision, describe
from genssl.training.loop import Step, Training
from genssl.training.monitor import KNN_BANK, KNN_QUERIES, Monitor
from genssl.training.options import Options, should_compile

STEPS = {128: 6, 32: 16}  # of one measurement, by batch size
GPU_TIMES = 16  # as many more steps on a GPU
TRAIN, TEST, CLASSES = 50_000, 10_000, 10  # CIFAR-10
EPOCH_BATCH, EPOCHS = 512, 5  # of genssl's own epochs; one more warms up


class Pictures(Dataset[list[Tensor]]):
    """PIL images from bytes, through lightly's transform, one image at a time."""

    def __init__(self, images: Tensor) -> None:
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = their_transform()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(Image.fromarray(self.arrays[index]))
        return views


class LightlySimSiam(nn.Module):
    """torchvision's ResNet-18 with a stem for small images, under lightly's heads."""

    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18(zero_init_residual=True)
        resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
        resnet.fc = nn.Identity()
        self.backbone = resnet
        self.projection_head = SimSiamProjectionHead(512, 2048, 2048)
        self.prediction_head = SimSiamPredictionHead(2048, 512, 2048)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projection_head(self.backbone(x))
        p = self.prediction_head(z)
        return z.detach(), p


def their_side(
    images: Tensor, batch: int, device: torch.device, *, tuned: bool = False
) -> Callable[[], float]:
    """Images a second over an epoch of lightly's loop; tuned: channels_last, bf16 and a fused optimizer."""
    layout = torch.channels_last if tuned else torch.contiguous_format
    precision = choose_precision("auto", device) if tuned else "fp32"
    model = LightlySimSiam().to(device).to(memory_format=layout)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.03 * batch / 256, momentum=0.9, weight_decay=5e-4, fused=tuned
    )
    # The workers live on between epochs, so that starting them does not count against so short ones
    loader = DataLoader(
        Pictures(images), batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )

    def epoch() -> float:
        start = time.perf_counter()
        total = torch.zeros((), device=device)
        for x1, x2 in loader:
            with autocast(device, precision):
                z1, p1 = model(x1.to(device).contiguous(memory_format=layout))
                z2, p2 = model(x2.to(device).contiguous(memory_format=layout))
                loss = 0.5 * (criterion(z1, p2) + criterion(z2, p1))
            total += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        total.item()  # waits for the device
        return len(loader) * batch / (time.perf_counter() - start)

    return epoch


def our_training(split: Split, config: SimSiamConfig, device: torch.device) -> Training:
    """A run's training as `genssl train` sets it up."""
    training = Training(
        build(config).to(device), choose_views(config, split.classes), split.to(device), config
    )
    if should_compile(Options(), device, training.total_steps):
        training.compile()
    return training


def our_side(split: Split, config: SimSiamConfig, device: torch.device) -> Callable[[], float]:
    """Images a second over an epoch of genssl's loop, each time it is called."""
    training = our_training(split, config, device)
    steps = training.steps()

    def epoch() -> float:
        start = time.perf_counter()
        take_epoch(training, steps)
        return training.steps_per_epoch * training.batch_size / (time.perf_counter() - start)

    return epoch


def take_epoch(training: Training, steps: Iterator[Step]) -> None:
    """Go on for one epoch and wait for the device."""
    for _ in range(training.steps_per_epoch):
        step = next(steps)
    assert step.losses["loss"].isfinite()  # a host read, which waits


def settings(batch: int, precision: str = "auto") -> SimSiamConfig:
    """The paper's, but with the three layers of lightly's projector, and mirrored though these are digits."""
    kept = {"data": "synthetic", "encoder": "resnet18", "projector_layers": 3, "flip": "on"}
    return SimSiamConfig(**kept, batch_size=batch, precision=precision, epochs=10_000)


def sides(batch: int, device: torch.device) -> dict[str, Callable[[], float]]:
    """lightly's loop as its guide writes it, tuned, and genssl's."""
    parameters = [
        sum(p.numel() for p in net.parameters()) for net in (LightlySimSiam(), build(settings(batch)))
    ]
    assert parameters[0] == parameters[1], parameters
    split = render.make("train", count=STEPS[batch] * (GPU_TIMES if device.type == "cuda" else 1) * batch)
    theirs = [their_side(split.images, batch, device, tuned=tuned) for tuned in (False, True)]
    return dict(zip(SIDES, (*theirs, our_side(split, settings(batch), device)), strict=True))


def random_split(part: str, count: int) -> Split:
    """Noise with labels, of CIFAR-10's shape."""
    source = torch.Generator().manual_seed(len(part))
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=source)
    labels = torch.randint(0, CLASSES, (count,), generator=source)
    return Split(
        images, labels, tuple(f"class {i}" for i in range(CLASSES)), "noise", part, "of the benchmark"
    )


def own_epochs(device: torch.device) -> None:
    """Print the seconds of an epoch as `genssl train simsiam` takes it, with and without kNN."""
    config = SimSiamConfig(batch_size=EPOCH_BATCH, epochs=100)
    train, test = random_split("train", TRAIN).to(device), random_split("test", TEST).to(device)
    training = our_training(train, config, device)
    steps, watch = training.steps(), Monitor(training.views, train, test, config)
    plain, both = [], []
    for _ in range(EPOCHS + 1):
        start = time.perf_counter()
        take_epoch(training, steps)
        plain.append(time.perf_counter() - start)
        watch.knn(training.inference)  # returns floats, so that it waits
        both.append(time.perf_counter() - start)
    print(f"seconds an epoch, {TRAIN:,} images, batch {EPOCH_BATCH}, {training.precision}, {EPOCHS} epochs")
    print(f"  without kNN {spread(plain[1:])}; 100 epochs {statistics.median(plain[1:]) / 0.6:.1f} min")
    print(f"  with kNN    {spread(both[1:])}; {KNN_QUERIES:,} queries, bank {KNN_BANK:,}, after every epoch")


def main(device_name: str = "auto") -> None:
    device = choose_device(device_name)
    torch.manual_seed(0)
    print(f"device: {describe(device)}; {versions('torch', 'torchvision', 'lightly', 'pillow')}")
    if device.type == "cuda":
        own_epochs(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train SimSiam beside lightly's.")
    parser.add_argument("--device", default="auto")
    main(parser.parse_args().device)
