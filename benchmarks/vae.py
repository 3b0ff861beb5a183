"""Training the course's VAE: the loop as a course writes it, against genssl's, end to end.

Same network, batch size, optimizer and images. The plain side is fp32 with a DataLoader of two workers
over PIL images, ToTensor and Normalize, and reads its loss at every step, as such loops do.
"""

import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.timing import SIDES
from genssl.config import VAEConfig
from genssl.data.augment.views import Plain
from genssl.data.split import Split
from genssl.data.synthetic import render
from genssl.models.build import build
from genssl.runtime import autocast, choose_precision
from genssl.training.loop import Training

IMAGES = 3200
BATCH = 64
STEPS = IMAGES // BATCH


class PlainDataset(Dataset[Tensor]):
    """PIL images and torchvision transforms, one image at a time."""

    def __init__(self, images: Tensor) -> None:
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        normalize = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
        self.transform = transforms.Compose([transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.fromarray(self.arrays[index]))
        return image


class PlainVAE(nn.Module):
    """The course's network, written as the course writes it."""

    def __init__(self) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for a, b in [(3, 32), (32, 64), (64, 128), (128, 256)]:
            down += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2), nn.BatchNorm2d(b)]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.mean, self.logvar = nn.Linear(1024, 32), nn.Linear(1024, 32)
        up: list[nn.Module] = []
        for a, b in [(256, 128), (128, 64), (64, 32), (32, 3)]:
            up += [nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(a, b, 3, 1, 1), nn.LeakyReLU(0.2)]
        first = [nn.Linear(32, 1024), nn.ReLU(), nn.Unflatten(1, (256, 2, 2))]
        self.decoder = nn.Sequential(*first, *up[:-1])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x)
        mean, logvar = self.mean(hidden), self.logvar(hidden).clamp(-30, 20)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        nll = 0.5 * ((self.decoder(z) - x) ** 2 + torch.log(torch.tensor(2 * torch.pi))).sum((1, 2, 3))
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)
        loss: Tensor = (nll + kl).mean()
        return loss


def tuned_side(images: Tensor, device: torch.device) -> Callable[[], float]:
    """The same loop as a strong user would tune it: tensors in memory, bf16, channels_last, fused Adam."""
    model = PlainVAE().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    precision = choose_precision("auto", device)
    everything = images.to(device)

    def epoch() -> float:
        start = time.perf_counter()
        total = torch.zeros((), device=device)
        for rows in torch.randperm(len(everything), device=device).split(BATCH):
            x = (everything[rows].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            with autocast(device, precision):
                loss = model(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        total.item()  # waits for the device
        return IMAGES / (time.perf_counter() - start)

    return epoch


def plain_side(images: Tensor, device: torch.device) -> Callable[[], float]:
    """An epoch of the plain loop, each time it is called."""
    model = PlainVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loader = DataLoader(PlainDataset(images), BATCH, shuffle=True, num_workers=2)

    def epoch() -> float:
        start = time.perf_counter()
        total = 0.0
        for batch in loader:
            loss = model(batch.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return IMAGES / (time.perf_counter() - start)

    return epoch


def our_side(split: Split, device: torch.device) -> Callable[[], float]:
    """An epoch of genssl's loop, each time it is called."""
    config = VAEConfig(data="synthetic", batch_size=BATCH, epochs=10_000)
    training = Training(build(config).to(device), Plain(), split.to(device), config)
    steps = training.steps()

    def epoch() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            step = next(steps)
        step.losses["loss"].item()  # waits for the device
        return IMAGES / (time.perf_counter() - start)

    return epoch


def sides(device: torch.device) -> dict[str, Callable[[], float]]:
    """The plain loop, the tuned one, and genssl's."""
    split = render.make("train", count=IMAGES)
    epochs = (plain_side(split.images, device), tuned_side(split.images, device), our_side(split, device))
    return dict(zip(SIDES, epochs, strict=True))
