"""Rendered digits and a small trained VAE, made once; no test touches the user's folders or the network."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import typer.main
import typer.testing
from PIL import Image
from typer.testing import CliRunner, Result

from genssl import figures, files
from genssl.cli import app
from genssl.data.synthetic import render
from genssl.models import unet
from genssl.studies import measures
from genssl.training.run_folder import RunFolder

from .narrow import given

SMALL = ["--set", "width=8", "--set", "z_dim=6", "--set", "mixture_components=2"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two workers get a half each: let both begin with slow tests, so that neither ends with them."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    first, second = len(slow) // 2, len(fast) // 2
    items[:] = [*slow[:first], *fast[:second], *slow[first:], *fast[second:]]


@pytest.fixture(scope="module")
def miniature_unet() -> Iterator[None]:
    """`network=small`, which no weights that ship have, is a network of a few thousand parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.LAYOUTS, "small", unet.Layout((16, 16), (1, 1), (False, False)))
        yield


@pytest.fixture(autouse=True)
def _blank_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take most of the time of so short a run: blank pictures, but for tests that look at figures."""
    if request.node.get_closest_marker("figures"):
        return

    def write(self: RunFolder, records: list[dict[str, Any]]) -> None:
        for name in ("curves.png", "wall-clock.png"):
            if records:
                files.write_picture(self.path / name, Image.new("RGB", (8, 8)))

    monkeypatch.setattr(RunFolder, "write_curves", write)


@pytest.fixture(autouse=True)
def _sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies time the sampling of each arm once, and not for seconds."""
    monkeypatch.setattr(measures, "SAMPLING_BUDGET", 1e-9)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors: threads only cost


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working folder with its own cache and checkpoints."""
    folder = tmp_path_factory.mktemp("workplace")
    before = {name: os.environ.get(name) for name in ("GENSSL_CACHE", "GENSSL_CHECKPOINTS")}
    here = Path.cwd()
    os.environ["GENSSL_CACHE"] = str(folder / "cache")
    os.environ["GENSSL_CHECKPOINTS"] = str(folder / "checkpoints")
    os.chdir(folder)
    yield folder
    os.chdir(here)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def digits(workplace: Path) -> Path:
    """An image folder of rendered digits: 120 to train on, 40 to test on."""
    folder = workplace / "digits"
    write_digits(folder, 120, 40)
    return folder


def write_digits(folder: Path, train: int, test: int, size: int = 32) -> None:
    """Write an image folder of rendered digits, a folder a part and a class."""
    parts: list[tuple[Literal["train", "test"], int]] = [("train", train), ("test", test)]
    for part, count in parts:
        split = render.make(part, count=count)
        labels = given(split.labels).tolist()
        for place, (image, label) in enumerate(zip(split.images, labels, strict=True)):
            file = folder / part / str(label) / f"{place:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            figures.one(image).resize((size, size)).save(file)


# The runner would build all commands anew at every call, which takes longer than most of them
vars(typer.testing)["_get_command"] = cache(typer.main.get_command)


def call(*arguments: object) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def vae_run(digits: Path, workplace: Path) -> Path:
    """A small VAE with a learned variance, trained for two epochs on the digits."""
    result = call(
        "train", "vae", "--data", digits, "--epochs", 2, "--batch-size", 16, "--sample-every", 1,
        *SMALL, "--set", "decoder_variance=learned", "--tag", "fixture",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return workplace / "checkpoints" / "vae-digits-fixture"
