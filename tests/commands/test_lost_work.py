"""No work is lost: --out is checked before it, what was drawn stays, numbers come before pictures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genssl import environment, files
from genssl.commands import _outputs
from genssl.data import image_folder
from genssl.eval import sample as sampling
from genssl.eval.latent_profile import draw_profile
from genssl.figures import draw_confusion
from genssl.metrics.latents import class_profile
from genssl.pixels import to_bytes
from tests.conftest import SMALL, call


def pixels(folder: Path) -> dict[str, bytes]:
    return {file.name: Image.open(file).tobytes() for file in sorted(folder.glob("*.png"))}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Let Ctrl-C come in the middle of writing the batch after `batches`."""
    from genssl.commands._outputs import SampleFolder

    write, count = SampleFolder.write, 0

    def stopped(self: SampleFolder, start: int, images: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count > batches:
            write(self, start, images[:1])
            (self.folder / "00099.png.tmp").write_bytes(b"half of one")
            raise KeyboardInterrupt
        write(self, start, images)

    monkeypatch.setattr(SampleFolder, "write", stopped)


def test_the_same_command_goes_on_where_sampling_was_stopped(
    vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("-n", 10, "--batch-size", 4, "--seed", 3)
    assert call("sample", vae_run, *options, "--out", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 1)
        result = call("sample", vae_run, *options, "--out", tmp_path / "parts")
    assert result.exit_code == 130
    assert len(pixels(tmp_path / "parts")) == 5  # one batch, and one image of the next
    drawn: list[int] = []

    def counted(x: Tensor) -> Tensor:
        drawn.append(len(x))
        return to_bytes(x)

    monkeypatch.setattr(sampling, "to_bytes", counted)
    result = call("sample", vae_run, *options, "--out", tmp_path / "parts")
    assert result.exit_code == 0, result.output
    assert "5 images are in" in result.output
    assert drawn == [4, 2]
    assert pixels(tmp_path / "parts") == pixels(tmp_path / "whole")
    assert pixels(tmp_path)["parts-grid.png"] == pixels(tmp_path)["whole-grid.png"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir())[-1] == "samples.json"


def test_images_of_other_weights_are_not_mixed_in(vae_run: Path, tmp_path: Path) -> None:
    options = ("sample", vae_run, "-n", 6, "--batch-size", 2, "--out", tmp_path / "images")
    assert call(*options).exit_code == 0
    right = pixels(tmp_path / "images")
    record = json.loads((tmp_path / "images" / "samples.json").read_text())
    assert record["settings"]["batch_size"] == 2
    (tmp_path / "images" / "00001.png").write_bytes(  # as other weights drew it, with the same command
        environment.mark_png(blank(), {"command": record["command"]})
    )
    record["settings"]["weights_sha256"] = "other"
    (tmp_path / "images" / "samples.json").write_text(json.dumps(record))
    assert call(*options).exit_code == 0
    assert pixels(tmp_path / "images") == right
    assert call(*options[:3], 7, *options[4:]).exit_code == 2  # another command: another folder


def blank() -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
def test_a_killed_process_leaves_whole_images(vae_run: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "genssl", "sample", str(vae_run), "-n", "4000", "--batch-size", "1",
        "--out", str(tmp_path / "images"),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        while not (tmp_path / "images" / "00020.png").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert len(pixels(tmp_path / "images")) >= 20


def test_a_picture_that_cannot_be_written_leaves_the_numbers(
    vae_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("image size of 55198x55198 pixels is too large")

    monkeypatch.setattr(_outputs, "write_picture", fail)
    assert call("reconstruct", vae_run, "-n", 3).exit_code == 1
    assert json.loads((vae_run / "eval" / "reconstruct-n3.json").read_text())["psnr_db"]


def test_figures_of_a_thousand_classes(tmp_path: Path) -> None:
    classes = [f"class {i}" for i in range(1000)]
    figure = draw_confusion(torch.eye(1000).long(), classes, "title")
    files.write_picture(tmp_path / "confusion.png", figure)
    assert max(Image.open(tmp_path / "confusion.png").size) < 4000
    few = draw_confusion(torch.eye(10).long(), classes[:10], "title").axes[0]
    assert [label.get_text() for label in few.get_xticklabels()] == classes[:10]
    profile = class_profile(torch.randn(4000, 3), torch.arange(4000) % 1000, 1000)
    files.write_picture(tmp_path / "profile.png", draw_profile(profile, tuple(classes), [0]))
    assert max(Image.open(tmp_path / "profile.png").size) < 8000


REF = "RUN"
COMMANDS = [
    ["sample", REF], ["reconstruct", REF], ["interpolate", REF], ["latent-profile", REF],
    ["importance-ll", REF], ["knn-eval", REF], ["linear-eval", REF],
    ["fidelity", REF, "-n", 16, "-k", 2], ["data", "preview", "synthetic"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("out", ["file/x.png", "/proc/x.png", "x.bmp"])
def test_an_out_that_cannot_be_written_is_refused_before_the_work(
    vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[object], out: str
) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("hello")
    monkeypatch.setattr("genssl.data.loading.load", load)
    monkeypatch.setattr("genssl.eval.sample.draw_samples", load)
    result = call(*[vae_run if word == REF else word for word in command], "--out", out)
    assert result.exit_code == 2, result.output
    assert "cannot write" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (["features", REF], "file/x.safetensors"), (["sample", REF], "file/images"),
        (["export", REF, "--format", "onnx"], "file/x.onnx"), (["report"], "file/x.html"),
        (["data", "export", "synthetic"], "file/images"), (["train", "vae", "--data", "DIGITS"], "file/run"),
        (["train", "vae", "--data", "DIGITS"], "/proc/run"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_so_is_that_of_other_commands(
    vae_run: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("hello")
    monkeypatch.setattr(image_folder, "convert", None)
    names = {REF: vae_run, "DIGITS": digits}
    result = call(*[names.get(word, word) for word in command], "--out", out)
    assert result.exit_code == 2, result.output
    assert "cannot write" in result.output


def test_a_home_folder_in_out(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert call("sample", vae_run, "-n", 2, "--out=~/grid.png").exit_code == 0
    assert call("sample", vae_run, "-n", 2, "--out", "~/images").exit_code == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"grid.png", "images", "images-grid.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    for words in (
        ["--out=~no-such-user/x.png"],
        ["--out", "~no-such-user/x.png"],
        ["--data=~no-such-user/x"],
    ):
        result = call("sample", vae_run, *words)
        assert result.exit_code == 2
        assert result.output.strip().count("\n") == 0
        assert "~no-such-user has no home folder" in result.output
    assert call("train", "vae", "--set", "data=~no-such-user/x").exit_code == 2


ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "shown"), [(ASCII, b"caf\\xe9"), (C_LOCALE, b"caf\\xdcc3")])
def test_an_ascii_terminal_shows_codes(tmp_path: Path, settings: dict[str, str], shown: bytes) -> None:
    for i in range(4):
        file = tmp_path / "café" / ("猫" if i % 2 else "犬") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(file)
    environment = {**os.environ, **settings, "GENSSL_CACHE": str(tmp_path / "cache")}
    for words in (
        ["data", "fetch", "café", "--image-size", "8"],
        ["data", "list"],
        ["train", "vae", "--data", "café", "--image-size", "16", "--epochs", "1", "--out", "é", *SMALL],
    ):
        if settings is C_LOCALE and words[0] == "train":
            continue  # where names are not even text, no setting can be one
        command = [sys.executable, "-m", "genssl", *words]
        done = subprocess.run(command, capture_output=True, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout + done.stderr or words[1] == "list"
