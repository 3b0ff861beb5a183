"""A class-conditional DDPM on the command line: trained, resumed, sampled by class."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from genssl import config as configs
from genssl import run_info
from genssl.settings import differences

from ..conftest import SMALL, call

pytestmark = pytest.mark.usefixtures("miniature_unet")

SETTINGS = [
    "--set", "network=small", "--set", "timesteps=20", "--set", "features_t=3", "--epochs", 1,
    "--batch-size", 30, "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes") / "run"
    result = call(
        "train", "ddpm", "--data", digits, "--out", folder, "--set", "conditional=true", *SETTINGS,
        "--set", "prediction=v", "--set", "weighting=min_snr",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def test_the_run_knows_its_classes(run: Path) -> None:
    info = run_info.inspect(run)
    assert info.training["classes"] == [str(digit) for digit in range(10)]
    settings = json.loads((run / "config.json").read_text())
    assert (settings["conditional"], settings["num_classes"]) == (True, 10)
    # the settings as they were typed are those of this run
    asked = configs.read((run / "config.json").read_text(), "config.json").updated({"num_classes": None})
    assert differences(asked, info.config) == {}


def test_samples_of_one_class_and_of_all(run: Path, tmp_path: Path) -> None:
    result = call(
        "sample", run, "-n", 4, "--class", 7, "--guidance", 2, "--json", "--out", tmp_path / "seven.png"
    )
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert (values["class"], values["guidance"], values["sampler"]) == ("7", 2, "dpm++")
    with Image.open(tmp_path / "seven.png") as picture:
        assert isinstance(picture, PngImageFile)
        assert "class 7, guidance 2" in picture.text["Description"]
    result = call("sample", run, "-n", 4, "--spacing", "log-snr", "--json", "--out", tmp_path / "spaced.png")
    values = json.loads(result.stdout)
    assert (values["spacing"], values["guidance"]) == ("log-snr", 0.5)
    with Image.open(tmp_path / "spaced.png") as picture:
        assert isinstance(picture, PngImageFile)
        assert "spacing log-snr, guidance 0.5" in picture.text["Description"]
    result = call("sample", run, "-n", 20, "--class", "all", "--out", tmp_path / "all.png")
    assert result.exit_code == 0, result.output
    result = call(
        "sample", run, "-n", 4, "--sampler", "heun", "--steps", 4, "--json", "--out", tmp_path / "r.png"
    )
    values = json.loads(result.stdout)
    assert (values["class"], values["guidance"], values["nfe"]) == ("random", 0.5, 7)


def test_it_is_measured_like_any_other(run: Path, tmp_path: Path) -> None:
    for command in (
        ("reconstruct", run, "--t-prime", 5, "-n", 4),
        ("bits-per-dim", run, "--limit", 8, "--t-samples", 4),
        ("interpolate", run, "--rows", 2, "--steps", 3, "--t-prime", 10, "--nfe", 4),
    ):
        result = call(*command, "--device", "cpu", "--out", tmp_path / f"{command[0]}.png")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "ten"), "no class 'ten'; it has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (("--class", "10"), "no class '10'"),
    ],
)
def test_a_class_that_is_not_there_is_refused(
    run: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = call("sample", run, *arguments, "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_conditional_vae_is_sampled_by_class_and_measured_without(digits: Path, tmp_path: Path) -> None:
    vae = tmp_path / "vae"
    result = call(
        "train", "vae", "--data", digits, "--out", vae, "--epochs", 1, "--batch-size", 40, "--device", "cpu",
        "--set", "conditional=true", *SMALL, "--set", "decoder_variance=learned",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    images = {}
    for options, shown in (
        (("--class", 7), "7"), (("--class", 3), "3"), (("--class", "all"), "all"), ((), "random"),
        (("--prior", "mixture"), "none"),
    ):  # fmt: skip
        out = tmp_path / shown
        result = call("sample", vae, "-n", 10, *options, "--json", "--out", out, "--device", "cpu")
        assert result.exit_code == 0, result.output
        values = json.loads(result.stdout)
        assert values["class"] == shown
        assert "guidance" not in values
        images[shown] = [Image.open(out / f"{i:05d}.png").tobytes() for i in range(10)]
    # The noise of image i is the same in all of them, so what differs is the class
    assert images["7"] != images["3"]
    for i in (3, 7):
        assert images["all"][i] == images[str(i)][i]
        assert images["all"][i] not in {images[other][i] for other in ("none", str(10 - i))}
    for command in (
        ("reconstruct", vae, "-n", 4), ("interpolate", vae, "--rows", 2, "--steps", 3),
        ("latent-profile", vae), ("importance-ll", vae, "-k", 2, "--limit", 4),
        ("features", vae, "--limit", 8, "--out", tmp_path / "f.safetensors"),
    ):  # fmt: skip
        result = call(*command, "--device", "cpu")
        assert result.exit_code == 0, result.output
    result = call("sample", vae, "--guidance", 1, "--class", 7, "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "a vae has no --guidance to sample with" in result.stderr


def test_what_has_no_classes_says_so(vae_run: Path, digits: Path, tmp_path: Path) -> None:
    result = call("sample", vae_run, "--class", "7", "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "this vae was trained without classes" in result.stderr
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in list(digits.rglob("*.png"))[:40]:
        (flat / file.name).write_bytes(file.read_bytes())
    result = call(
        "train", "ddpm", "--data", flat, "--out", tmp_path / "run", "--set", "conditional=true", *SETTINGS
    )
    assert result.exit_code == 2
    assert "has no labels, and conditional=true needs them" in result.stderr
    assert not (tmp_path / "run").exists()


def test_guidance_is_swept_without_training(run: Path, tmp_path: Path) -> None:
    result = call(
        "ablate", run, "--guidance", 0, "--guidance", 2, "-n", 24, "--device", "cpu", "--json",
        "--out", tmp_path / "sweep.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert [row["w"] for row in values["guidance"]] == [0, 2]
    assert values["samples"] == 24
    assert (tmp_path / "sweep.png").exists()
    # Other weights of guidance, or another seed, leave earlier results alone
    for options in ((0,), (0, "--seed", 1), (-1,)):
        assert call("ablate", run, "--guidance", *options, "-n", 24, "--device", "cpu").exit_code == 0
    names = {file.name for file in (run / "eval").glob("guidance*.json")}
    assert names == {f"guidance-n24-{rest}.json" for rest in ("w0", "seed1-w0", "wminus1")}
    for value in ("nan", -5):
        result = call("ablate", run, "--guidance", value, "-n", 24)
        assert result.exit_code == 2
        assert "guidance" in result.stderr
    other = tmp_path / "other"
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (other / name).mkdir(parents=True)
        for i in range(9):
            Image.new("RGB", (32, 32), (i, 0, 0)).save(other / name / f"{i}.png")
    result = call("ablate", run, "--guidance", 0, "-n", 4, "--data", other, "--device", "cpu")
    assert result.exit_code == 2
    assert "other has no labels, or other classes than the run" in result.stderr
    result = call("ablate", run, "--guidance", 0, "--epochs", 3)
    assert result.exit_code == 2
    assert "--guidance trains nothing" in result.stderr
