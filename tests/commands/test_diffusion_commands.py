"""The diffusion commands, as a user types them, on rendered digits at 16 pixels and 20 steps of noise."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from genssl import checkpoint

from ..conftest import call
from ..pictures import native_grid
from .test_commands import json_of

pytestmark = pytest.mark.usefixtures("miniature_unet")


@pytest.fixture(scope="module")
def ddpm_run(digits: Path, workplace: Path, miniature_unet: None) -> Path:
    result = call(
        "train", "ddpm", "--data", digits, "--epochs", 1, "--image-size", 16, "--batch-size", 32,
        "--timesteps", 20, "--set", "network=small", "--set", "features_t=2", "--tag", "fixture",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "end with visible signal" in result.stderr  # 20 steps of these betas do
    return workplace / "checkpoints" / "ddpm-digits-fixture"


def test_training_leaves_samples_and_losses_by_noise_level(ddpm_run: Path) -> None:
    assert (ddpm_run / "samples-over-epochs.png").exists()
    record = json.loads((ddpm_run / "history.jsonl").read_text().splitlines()[-1])
    assert {"loss", "loss_low", "loss_mid", "loss_high", "test_loss"} <= set(record)


@pytest.mark.parametrize("sampler", ["dpm++", "ddim", "ancestral"])
def test_sample_says_how_many_calls_it_took(ddpm_run: Path, tmp_path: Path, sampler: str) -> None:
    found = json_of(
        "sample", ddpm_run, "-n", 4, "--sampler", sampler, "--steps", 5, "--out", tmp_path / "g.png"
    )
    assert (found["sampler"], found["nfe"]) == (sampler, 5)
    native_grid(Image.open(tmp_path / "g.png"), 2, 2, 16)


@pytest.mark.parametrize("sampler", ["dpm++", "ancestral"])
def test_image_i_is_the_same_for_every_batch_size(ddpm_run: Path, tmp_path: Path, sampler: str) -> None:
    for batch in (1, 7, 64):
        chosen = ["-n", 7, "--batch-size", batch, "--sampler", sampler, "--steps", 6]
        assert call("sample", ddpm_run, *chosen, "--out", tmp_path / str(batch)).exit_code == 0
    for place in range(7):
        one, seven, many = (
            torch.tensor(list(Image.open(tmp_path / b / f"{place:05d}.png").tobytes()))
            for b in ("1", "7", "64")
        )
        # a product's rounding depends on the batch: one level at the edge of a bin
        assert (one - seven).abs().max() <= 1
        assert (one - many).abs().max() <= 1


def test_a_trajectory_has_a_row_an_image(ddpm_run: Path, tmp_path: Path) -> None:
    result = call("sample", ddpm_run, "-n", 1, "--trajectory", "--out", tmp_path / "g.png")
    assert result.exit_code == 0, result.output
    native_grid(Image.open(tmp_path / "g-trajectory.png"), 8, 10, 16)


@pytest.mark.parametrize(("sampler", "calls"), [("heun", 11), ("ddim", 6)])
def test_a_trajectory_says_how_often_the_network_was_called(
    ddpm_run: Path, tmp_path: Path, sampler: str, calls: int
) -> None:
    options = ["--sampler", sampler, "--steps", 6, "--trajectory"]
    assert call("sample", ddpm_run, "-n", 1, *options, "--out", tmp_path / "g.png").exit_code == 0
    for name in ("g.png", "g-trajectory.png"):
        with Image.open(tmp_path / name) as picture:
            assert f"{calls} network calls per image" in picture.info["Description"]


def test_reconstruct_from_a_noise_level(ddpm_run: Path, tmp_path: Path) -> None:
    found = json_of("reconstruct", ddpm_run, "--t-prime", 12, "-n", 3, "--out", tmp_path / "r.png")
    assert found["images"] == 3
    assert (tmp_path / "r.png").exists()


def test_a_sweep_finds_t_star_or_says_that_it_did_not(ddpm_run: Path, tmp_path: Path) -> None:
    chosen = ["--sweep", "5:20:5", "--queries", 10, "--steps", 4, "--features", ddpm_run]
    found = json_of("reconstruct", ddpm_run, *chosen, "--out", tmp_path / "s.png")
    assert [row["t_prime"] for row in found["levels"]] == [5, 10, 15, 20]
    assert {"t_star_pixels", "t_star_features"} <= set(found)
    assert (tmp_path / "s.png").exists()


def test_a_sweep_compares_in_the_default_features_and_goes_on_until_t_star(
    ddpm_run: Path, digits: Path, tmp_path: Path
) -> None:
    chosen = ["--sweep", "2,5", "--until", 20, "--queries", 10, "--steps", 4, "--out"]
    labeled = json_of("reconstruct", ddpm_run, *chosen, tmp_path / "labeled.png")
    assert labeled["features"] == "genssl-1"
    rows: Any = labeled["levels"]
    assert [row["t_prime"] for row in rows][:3] == [2, 5, 6]
    stars = {f"t_star_{name}" for name in ("pixels", "features", "class")}
    assert stars <= set(labeled)
    assert all({"identity_pixels", "identity_features", "class_kept"} <= set(row) for row in rows)
    in_pixels = json_of("reconstruct", ddpm_run, *chosen, tmp_path / "pixels.png", "--features", "pixels")
    assert stars & set(in_pixels) == {"t_star_pixels", "t_star_class"}

    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted((digits / "test").rglob("*.png"))):
        shutil.copy(file, flat / f"{i}.png")
    unlabeled = json_of("reconstruct", ddpm_run, *chosen, tmp_path / "unlabeled.png", "--data", flat)
    assert stars & set(unlabeled) == {"t_star_pixels", "t_star_features"}
    assert "class_kept" not in unlabeled["levels"][0]


@pytest.mark.parametrize("method", ["ddim", "noise"])
def test_interpolate_through_noise(ddpm_run: Path, tmp_path: Path, method: str) -> None:
    chosen = ["--method", method, "--rows", 2, "--steps", 4]
    # 50 calls of ddim by itself are as many as there are: 20 timesteps, or t'
    for t_prime, calls in ((20, {"ddim": 20, "noise": 20}), (6, {"ddim": 6, "noise": 6})):
        out = tmp_path / f"{t_prime}.png"
        found = json_of("interpolate", ddpm_run, *chosen, "--t-prime", t_prime, "--out", out)
        assert (found["noise_method"], found["rows"], found["steps"]) == (method, 2, 4)
        assert found["nfe"] == calls[method]
    result = call("interpolate", ddpm_run, *chosen, "--nfe", 50)
    reason = {"ddim": "--nfe of ddim must be from 1 to 20", "noise": "--nfe is not for a run interpolated by"}
    assert (result.exit_code, reason[method] in result.stderr) == (2, True)


def test_calls_of_heuns_method_are_counted(ddpm_run: Path, tmp_path: Path) -> None:
    ways = ["--sampler", "heun", "--steps", 4, "--out"]
    found = json_of("reconstruct", ddpm_run, "--t-prime", 10, "-n", 2, *ways, tmp_path / "r.png")
    assert (found["steps"], found["network_calls"]) == (4, 2 * 7)
    sweep = ["--sweep", "5,10", "--queries", 3, "--limit", 20, "--features", "pixels"]
    found = json_of("reconstruct", ddpm_run, *sweep, *ways, tmp_path / "s.png")
    levels = [level["t_prime"] for level in found["levels"]]
    assert found["network_calls"] == 3 * 7 * len(levels) + sum(levels)


def test_bits_per_dim(ddpm_run: Path, tmp_path: Path) -> None:
    found = json_of("bits-per-dim", ddpm_run, "--limit", 6, "--out", tmp_path / "b.png")
    few = json_of("bits-per-dim", ddpm_run, "--limit", 6, "--t-samples", 5, "--out", tmp_path / "c.png")
    assert (found["evaluations_per_image"], few["evaluations_per_image"]) == (20, 6)
    parts = [found[f"{part}_bits_per_dim"] for part in ("prior", "denoising", "decoder")]
    assert sum(map(float, parts)) == pytest.approx(float(found["bits_per_dim"]))


def test_an_ablation_of_the_timesteps(digits: Path, workplace: Path, tmp_path: Path) -> None:
    base = ["--base", "network=small", "--base", "image_size=16", "--base", "features_t=2"]
    study = ["ablate", "ddpm", "--data", digits, "--epochs", 1, "--batch-size", 32, *base]
    found = json_of(*study, "--timesteps", 10, "--timesteps", 20, "--out", tmp_path / "study")
    assert len(found["rows"]) >= 2
    assert all("bits_per_dim" in row["numbers"] for row in found["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ddpm", "--data", "DIGITS", "--timesteps", 0], "timesteps"),
        (["train", "ddpm", "--data", "DIGITS", "--set", "network=huge"], "network"),
        (["train", "vae", "--data", "DIGITS", "--timesteps", 5], "unknown setting 'timesteps'"),
        (["sample", "RUN", "-n", 0], "Invalid value for '-n'"),
        (["sample", "RUN", "--steps", 21], "steps"),
        (["sample", "RUN", "--prior", "mixture"], "has no --prior"),
        (["reconstruct", "RUN"], "needs --t-prime"),
        (["reconstruct", "RUN", "--t-prime", 21], "from 1 to"),
        (["reconstruct", "RUN", "--t-prime", 0], "from 1 to"),
        (["reconstruct", "RUN", "--t-prime", 5, "--sweep", "1:2:1"], "give one of them"),
        (["reconstruct", "RUN", "--sweep", "5:1:1"], "cannot read the levels"),
        (["reconstruct", "RUN", "--sweep", "often"], "cannot read the levels"),
        (["reconstruct", "RUN", "--sweep", "10:30:10"], "from 1 to"),
        (["reconstruct", "RUN", "--sweep", "2,5", "--until", 21], "from 1 to"),
        (["interpolate", "RUN", "--path", "linear"], "--path is not for a ddpm"),
        (["latent-profile", "RUN"], "needs a vae"),
        (["importance-ll", "RUN"], "needs a vae"),
        (["bits-per-dim", "RUN", "--t-samples", 0], "t-samples"),
        (["reconstruct", "VAE", "--t-prime", 5], "are for a diffusion model"),
        (["sample", "vae", "--checkpoint", "RUN"], "holds a ddpm"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    ddpm_run: Path, vae_run: Path, digits: Path, arguments: list[object], message: str
) -> None:
    places = {"RUN": ddpm_run, "VAE": vae_run, "DIGITS": digits}
    result = call(*[places.get(str(argument), argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line


def test_a_saved_ddpm_samples_the_same_after_loading(ddpm_run: Path) -> None:
    from genssl.runtime import generators

    methods: list[Any] = [checkpoint.load(ddpm_run) for _ in range(2)]
    images = [m.sample(2, generators(0, "sample", range(2)), "ancestral") for m in methods]
    assert torch.equal(*images)
