"""Every method on gray digits, as a user types it: one channel from training to the pictures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from genssl import checkpoint, run_info
from genssl.commands._run import SampleSource, feature_space, load_run
from genssl.data import loading as load_module
from genssl.data.loading import load
from genssl.export import onnx
from genssl.models.diffusion import linear_schedule
from genssl.pixels import to_model

from ..conftest import SMALL, call
from .test_commands import json_of

pytestmark = pytest.mark.usefixtures("miniature_unet")

NOTE = "images are gray: one channel"
HEADS = ["--set", "projector_dim=16", "--set", "projector_hidden=16"]
ENCODER = ["--set", "encoder=small", *HEADS]
PREDICTOR = [*ENCODER, "--set", "predictor_hidden=8"]
METHODS = {
    "vae": [*SMALL, "--set", "decoder_variance=learned"],
    "ddpm": ["--set", "network=small", "--set", "timesteps=20", "--set", "features_t=5"],
    "simsiam": PREDICTOR,
    "dssl": PREDICTOR,
    "byol": PREDICTOR,
    "barlow-twins": ENCODER,
    "vicreg": ENCODER,
    "simclr": ENCODER,
    "moco": [*ENCODER, "--set", "queue_size=16"],
    "classifier": ["--set", "encoder=small"],
}
EVALUATIONS: dict[str, list[list[object]]] = {
    "vae": [
        ["reconstruct", "-n", 4],
        ["interpolate", "--rows", 2, "--steps", 3, "--between", "test"],
        ["latent-profile"],
        ["knn-eval", "-k", 5],
    ],
    "ddpm": [
        ["reconstruct", "--t-prime", 4, "-n", 2],
        ["reconstruct", "--sweep", "4,9", "--queries", 8, "--limit", 8],
        ["interpolate", "--rows", 2, "--steps", 3, "--nfe", 2],
        ["knn-eval", "-k", 5],
    ],
}
OF_ENCODERS: list[list[object]] = [
    ["knn-eval", "-k", 5],
    ["linear-eval", "--epochs", 2, "--augment"],
    ["features", "--limit", 8],
]


@pytest.fixture(scope="module")
def gray(digits: Path, workplace: Path) -> Path:
    """The digits without color, half of them in mode L and half as three equal channels."""
    folder = workplace / "gray"
    for i, file in enumerate(sorted(digits.rglob("*.png"))):
        target = folder / file.relative_to(digits)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).convert("L").convert("RGB" if i % 2 else "L").save(target)
    return folder


@pytest.fixture(scope="module")
def runs(gray: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Filled by `train`."""
    return {"root": tmp_path_factory.mktemp("runs")}


def train(method: str, data: Path, folder: Path, *options: object) -> str:
    """Two steps; returns what the command said."""
    settings = ["--data", data, "--limit", 16, "--batch-size", 8, "--epochs", 1, "--sample-every", 1]
    arguments = [*settings, "--knn-every", 0, "--out", folder, *METHODS[method], *options]
    result = call("train", method, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def run_of(method: str, gray: Path, runs: dict[str, Path]) -> Path:
    if method not in runs:
        runs[method] = runs["root"] / f"{method}-run"
        assert NOTE in train(method, gray, runs[method]).splitlines()
    return runs[method]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_trained_and_evaluated_in_one_channel(
    method: str, gray: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = run_of(method, gray, runs)
    assert json.loads((folder / "config.json").read_text())["channels"] == 1
    tensors = load_file(folder / "model.safetensors")
    first = {"vae": "encoder.0.weight", "ddpm": "network.start.weight"}.get(method, "encoder.conv1.weight")
    assert tensors[first].shape[1] == 1
    for i, words in enumerate(EVALUATIONS.get(method, OF_ENCODERS)):
        out = tmp_path / (f"{i}.safetensors" if words[0] == "features" else f"{i}.png")
        result = call(words[0], folder, *words[1:], "--out", out)
        assert result.exit_code == 0, f"{words}: {result.output}"
        picture = Image.open(out.with_suffix(".png")).convert("RGB")
        if words[0] in {"sample", "interpolate"}:
            colors = np.asarray(picture)
            assert (colors == colors[..., :1]).all()


@pytest.mark.parametrize("method", ["vae", "ddpm"])
def test_samples_are_exactly_gray(method: str, gray: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    folder = run_of(method, gray, runs)
    result = call("sample", folder, "-n", 6, "--out", tmp_path / "samples")
    assert result.exit_code == 0, result.output
    assert {Image.open(file).mode for file in (tmp_path / "samples").glob("*.png")} == {"L"}


def test_the_pinned_features_see_gray_images(gray: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    folder = run_of("vae", gray, runs)
    assert call("sample", folder, "-n", 6, "--out", tmp_path / "samples").exit_code == 0
    measured = json_of("fidelity", folder, "-n", 16, "--resamples", 0, "--out", tmp_path / "f.png")
    of_files = json_of(
        "fidelity", tmp_path / "samples", "--data", gray, "-n", 6, "-k", 2, "--resamples", 0,
        "--no-memorization",
    )  # fmt: skip
    assert measured["features"] == of_files["features"] == "genssl-1"
    assert of_files["samples"] == 6


def test_features_of_color_runs_see_gray_samples_and_the_reverse(
    gray: Path, digits: Path, vae_run: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    one = run_of("vae", gray, runs)
    for run, other in ((one, vae_run), (vae_run, one)):
        words = ["-n", 16, "--resamples", 0, "--features", other, "--no-memorization"]
        assert json_of("fidelity", run, *words)["samples"] == 16
    words = ["--data", digits, "--split", "train", "--out", tmp_path / "s.png"]
    assert json_of("fidelity", "--sensitivity", "--features", one, *words)["images"] == 60
    result = call("compare", one, vae_run, "-n", 16, "--out", tmp_path / "both")
    assert result.exit_code == 0, result.output


def test_bits_per_dim_are_of_one_channel(gray: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["-k", 2, "--limit", 6, "--out", tmp_path / "i.png"]
    found = json_of("importance-ll", run_of("vae", gray, runs), *arguments)
    assert isinstance(found["elbo_nats"], float)
    expected = -found["elbo_nats"] / (32 * 32 * math.log(2)) + 7
    assert found["elbo_bits_per_dim"] == pytest.approx(expected, rel=1e-9)

    bound = json_of("bits-per-dim", run_of("ddpm", gray, runs), "--out", tmp_path / "b.png")
    x = to_model(load(str(gray), "test", channels=1).images).double()
    signal = float(linear_schedule(20).alphas_cumprod[-1])
    # KL(N(sqrt(a) x, 1 - a) || N(0, 1)), the mean over 32 x 32 dimensions, in bits
    divergence = 0.5 * (signal * x.square() - signal - math.log(1 - signal)) / math.log(2)
    assert bound["prior_bits_per_dim"] == pytest.approx(float(divergence.mean()), rel=1e-4)


@pytest.mark.parametrize("method", ["simsiam", "vae", "ddpm"])
def test_networks_of_one_channel_are_exported(method: str, gray: Path, runs: dict[str, Path]) -> None:
    for graph in onnx.graphs(checkpoint.load(run_of(method, gray, runs))).values():
        images = [rows for name, rows in graph.inputs.items() if name in {"images", "x"}]
        assert all(rows.shape[1:] == (1, 32, 32) for rows in images)
        assert graph.module(*graph.inputs.values()) is not None


def test_torchvision_loads_an_encoder_of_one_channel(
    gray: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    folder, out = run_of("simsiam", gray, runs), tmp_path / "encoder.safetensors"
    found = json_of("export", folder, "--format", "torchvision", "--out", out)
    assert "model.conv1 = nn.Conv2d(1, 16, 3" in str(found["load"])
    assert "(N, 1, H, W)" in str(found["inputs"])


def test_a_gray_run_converts_other_images(
    gray: Path, digits: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = run_of("vae", gray, runs)
    of_color, of_gray = (
        json_of("reconstruct", folder, "--data", data, "--out", tmp_path / f"{data.name}.png")
        for data in (digits, gray)
    )
    assert of_color["mse"] == of_gray["mse"]  # the gray digits are the luma of the others


def test_a_report_shows_gray_runs(gray: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    result = call("report", run_of("vae", gray, runs), "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output


def test_color_stays_color_with_the_weights_of_before(digits: Path, tmp_path: Path) -> None:
    assert NOTE not in train("vae", digits, tmp_path / "now")
    config = json.loads((tmp_path / "now" / "config.json").read_text())
    assert config.pop("channels") == 3
    (tmp_path / "before.json").write_text(json.dumps(config))  # as earlier versions wrote it
    result = call("train", "--config", tmp_path / "before.json", "--out", tmp_path / "then")
    assert result.exit_code == 0, result.output
    now, then = (load_file(tmp_path / name / "model.safetensors") for name in ("now", "then"))
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in now)


def test_weights_without_the_setting_are_of_three_channels(vae_run: Path, tmp_path: Path) -> None:
    with safe_open(vae_run / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    # Files of that time had the digest of their tensors alone
    metadata["sha256"] = metadata.pop("tensors_sha256")
    config = json.loads(metadata["config"])
    del config["channels"]
    save_file(
        load_file(vae_run / "model.safetensors"), tmp_path / "model.safetensors",
        {**metadata, "config": json.dumps(config)},
    )  # fmt: skip
    assert checkpoint.load(tmp_path).config.channels == 3


def channels_of(folder: Path) -> int:
    return run_info.inspect(folder).config.channels


def test_the_option_goes_before_the_images(gray: Path, digits: Path, tmp_path: Path) -> None:
    assert NOTE in train("vae", digits, tmp_path / "luma", "--channels", 1)
    assert NOTE not in train("vae", gray, tmp_path / "three", "--channels", 3)
    train("vae", gray, tmp_path / "set", "--set", "channels=3")
    assert [channels_of(tmp_path / name) for name in ("luma", "three", "set")] == [1, 3, 3]
    luma, auto = tmp_path / "luma", tmp_path / "auto"
    train("vae", gray, auto, "--channels", "auto", "--resident-limit", 0)
    # The same pixels, streamed or not, and so the same weights
    one, other = (load_file(folder / "model.safetensors") for folder in (luma, auto))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_config_file_goes_before_the_images_unless_they_are_asked(gray: Path, tmp_path: Path) -> None:
    train("vae", gray, tmp_path / "three", "--channels", 3)
    for name, options in (("kept", []), ("auto", ["--channels", "auto"])):
        arguments = ["--config", tmp_path / "three", "--out", tmp_path / name, *options]
        assert call("train", *arguments).exit_code == 0
    assert [channels_of(tmp_path / name) for name in ("kept", "auto")] == [3, 1]


def test_a_run_is_found_again_by_its_channels(gray: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train("vae", gray, folder)
    again = call("train", "--resume", folder, "--channels", 3)
    assert again.exit_code == 2
    assert "channels was 1, now 3" in again.output
    assert call("train", "--resume", folder, "--channels", "auto").exit_code == 0


def test_an_ablation_takes_one_channel(gray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = ["ablate", "vae", "--data", gray, "--limit", 16, "--batch-size", 8, "--epochs", 1]
    base = ["--base", "width=8", "--base", "mixture_components=0", "--base", "sample_every=0"]
    command = [*study, *base, "--set", "z_dim=4", "--json"]
    for name in ("study", "again"):
        result = call(*command, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["settings"]["channels"] == 1
        monkeypatch.setattr(load_module, "load", None)  # what is done needs no data


@pytest.mark.parametrize("value", ["2", "0", "rgb"])
def test_other_numbers_are_refused_in_one_line(value: str, gray: Path) -> None:
    for words in (["--channels", value], ["--set", f"channels={value}"]):
        result = call("train", "vae", "--data", gray, *words)
        assert result.exit_code == 2
        (line,) = result.output.splitlines()
        assert line == f"genssl: channels must be 1 (gray) or 3 (color) (got '{value}')"


def test_images_without_parts_are_read_as_the_run_reads_its_own(gray: Path, tmp_path: Path) -> None:
    shape = np.random.default_rng(0).integers(0, 255, (12, 48, 16, 3), np.uint8)
    for i, pixels in enumerate(shape):
        (tmp_path / "tall").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "tall" / f"{i}.png")
    run = tmp_path / "run"
    ways = [*METHODS["vae"], "--fit", "pad", "--channels", 1, "--epochs", 1, "--device", "cpu"]
    result = call("train", "vae", "--data", gray, *ways, "--out", run)
    assert result.exit_code == 0, result.output
    cpu = torch.device("cpu")
    loaded = load_run(str(run), None, "cpu")
    space, _ = feature_space("pixels", 32, "cpu")
    source = SampleSource(
        loaded, None, cpu, space, 32, str(tmp_path / "tall"), str(gray), None, 0, skip_bad=False
    )
    real = source.real("test", 4, 0)
    assert real.images.shape == (4, 1, 32, 32)
    # White beside the tall images, not their center
    assert (real.images[..., 0] == 255).all()
    found = json_of("fidelity", run, "--data", tmp_path / "tall", "-n", 8, "-k", 2, "--features", "pixels",
                    "--no-memorization", "--device", "cpu")  # fmt: skip
    assert found["real_images"] == 8
