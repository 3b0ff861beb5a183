"""`genssl fidelity`, as a user types it, on rendered digits."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from genssl import paths
from genssl.commands._options import Common
from genssl.commands._run import open_samples
from genssl.data.cache import cache_folder
from genssl.eval import fidelity_features

from ..conftest import call
from .test_commands import json_of

FEW = ["-n", 20, "-k", 3, "--resamples", 3]


@pytest.fixture(scope="session")
def encoder_run(digits: Path, workplace: Path) -> Path:
    """A small encoder, trained for an epoch on few of the digits."""
    result = call(
        "train", "simsiam", "--data", digits, "--limit", 40, "--epochs", 1, "--batch-size", 20,
        "--set", "encoder=small", "--set", "projector_dim=16", "--set", "projector_hidden=16",
        "--set", "predictor_hidden=8", "--tag", "fixture",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return workplace / "checkpoints" / "simsiam-digits-fixture"


@pytest.fixture(scope="session")
def samples(vae_run: Path, workplace: Path) -> Path:
    assert call("sample", vae_run, "-n", 24, "--out", workplace / "samples").exit_code == 0
    return workplace / "samples"


def rows_of(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row["measure"]: row for row in found["measures"]}


def test_a_run_in_the_default_features(vae_run: Path) -> None:
    found = json_of("fidelity", vae_run, *FEW)
    assert (found["samples"], found["real_images"], found["other_images"]) == (20, 20, 20)
    assert (found["train_images"], found["part"], found["features"]) == (120, "test", "genssl-1")
    assert found["features_digest"]
    assert found["sampling"]["prior"] == "normal"
    assert found["sampling"]["seconds"] >= 0
    assert list(rows_of(found)) == [
        "frechet_distance", "frechet_distance_infinity", "kernel_distance", "precision", "recall", "density",
        "coverage", "authenticity", "sharpness", "diversity",
    ]  # fmt: skip
    assert any("20 samples for 48 feature dimensions" in note for note in found["notes"])
    assert found == json.loads((vae_run / "eval" / "fidelity-k3-n20-resamples3.json").read_text())
    assert Image.open(vae_run / "eval" / "fidelity-k3-n20-resamples3.png").size[0] > 300
    again = json_of("fidelity", "vae", "--checkpoint", vae_run, *FEW)  # real features from the cache
    assert again["measures"] == found["measures"]


def test_what_a_person_sees(vae_run: Path) -> None:
    result = call("fidelity", vae_run, "--features", "pixels", "-k", 3, "--resamples", 2)
    assert result.exit_code == 0, result.output
    for words in (
        "frechet_distance",
        "like real images",
        "512 samples is what a CPU can bear",
        "too few real images",
    ):
        assert words in result.stdout


def test_options_reach_the_sampler_and_the_measures(vae_run: Path, tmp_path: Path) -> None:
    chosen = ["--features", "pixels", *FEW]
    found = json_of("fidelity", vae_run, *chosen, "--no-memorization", "--split", "train")
    assert (found["part"], found["dimensions"], found["neighbors"], found["resampled_halves"]) == (
        "train", 3 * 32**2, 3, 3,
    )  # fmt: skip
    assert "authenticity" not in rows_of(found)
    file = vae_run / "eval" / "fidelity-features-pixels-k3-no-memorization-n20-resamples3-train.json"
    assert json.loads(file.read_text()) == found
    assert not file.with_suffix(".png").exists()  # it shows the training images
    mixture = json_of("fidelity", vae_run, *chosen, "--prior", "mixture")
    assert mixture["sampling"]["prior"] == "mixture"
    assert rows_of(mixture)["diversity"] != rows_of(found)["diversity"]
    assert json_of("fidelity", vae_run, *chosen, "--seed", 1)["measures"] != mixture["measures"]


def test_a_folder_has_the_numbers_of_the_run_that_made_it(
    vae_run: Path, samples: Path, digits: Path, tmp_path: Path
) -> None:
    chosen = ["--features", "pixels", "-k", 3, "--resamples", 0]
    folder = json_of("fidelity", samples, "--data", digits, *chosen, "--out", tmp_path / "f.png")
    run = json_of("fidelity", vae_run, "-n", 24, *chosen, "--out", tmp_path / "r.png")
    expected = {name: row["samples"] for name, row in rows_of(run).items()}
    kernel = expected.pop("kernel_distance")  # its subsets are of the same samples in another order
    found = {name: row["samples"] for name, row in rows_of(folder).items()}
    assert found.pop("kernel_distance") == pytest.approx(kernel, rel=0.5)
    assert found == pytest.approx(expected, rel=1e-5)
    assert rows_of(folder)["precision"]["train"] == rows_of(run)["precision"]["train"]
    assert folder["sampling"]["digest"]


@pytest.mark.parametrize("kind", ["npz", "npy", "zip"])
def test_samples_in_one_file_are_those_of_the_folder(
    samples: Path, digits: Path, tmp_path: Path, kind: str
) -> None:
    chosen = ["--data", digits, "--features", "pixels", "-k", 3, "--resamples", 0]
    images = np.stack([np.asarray(Image.open(file)) for file in sorted(samples.glob("*.png"))])
    file = tmp_path / f"samples.{kind}"
    if kind == "zip":
        shutil.make_archive(str(tmp_path / "samples"), "zip", samples)
    elif kind == "npz":
        np.savez(file, images, np.zeros(len(images), np.int64))
    else:
        np.save(file, images)
    found = rows_of(json_of("fidelity", file, *chosen))
    assert found == rows_of(json_of("fidelity", samples, *chosen, "--out", tmp_path / "f.png"))
    assert len(list(tmp_path.glob(f"samples.{kind}-fidelity*.json"))) == 1


def test_a_reference_in_one_file(samples: Path, digits: Path, tmp_path: Path) -> None:
    files = sorted((digits / "train").rglob("*.png"))[:60]
    np.savez(tmp_path / "real.npz", np.stack([np.asarray(Image.open(file)) for file in files]))
    chosen = ["--features", "pixels", "-k", 3, "--resamples", 0, "--split", "all"]
    found = json_of("fidelity", samples, "--data", tmp_path / "real.npz", *chosen)
    assert (found["data"], found["part"], found["real_images"]) == ("real", "all", 24)


def test_a_flat_folder_of_real_images_is_used_whole(samples: Path, digits: Path, tmp_path: Path) -> None:
    files = sorted((digits / "train").rglob("*.png"))[:60]
    for i, file in enumerate(files):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "flat" / f"{i:02d}.png")
    chosen = [
        "--data",
        tmp_path / "flat",
        "--features",
        "pixels",
        "-k",
        3,
        "--resamples",
        0,
        "--split",
        "all",
    ]
    found = json_of("fidelity", samples, *chosen)
    assert (found["part"], found["real_images"], found["other_images"]) == ("all", 24, 24)
    assert "train" not in rows_of(found)["precision"]  # they are among the real images


def test_a_folder_stays_nothing_but_samples(samples: Path, digits: Path) -> None:
    chosen = ["--data", digits, "--features", "pixels", "-k", 3, "--resamples", 0]
    assert json_of("fidelity", samples, *chosen, "-n", 20)["samples"] == 20
    assert json_of("fidelity", samples, *chosen)["samples"] == 24  # all there are
    assert len(list(samples.glob("*.png"))) == 24
    for suffix in (".png", ".json"):
        assert len(list(samples.parent.glob(f"samples-fidelity-*-n20-*{suffix}"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "nobody"),
        (["SAMPLES"], "name the real images with --data"),
        (["SAMPLES", "--data", "DIGITS", "--prior", "mixture"], "--prior is for a run"),
        (["SAMPLES", "--data", "nowhere"], "nowhere"),
        (["EMPTY", "--data", "DIGITS", "--features", "pixels"], "no images in"),
        (["RUN", "--sampler", "ddim"], "has no --sampler"),
        (["ENCODER"], "does not generate images"),
        (["RUN", "--features", "nothing"], "no run 'nothing'"),
        (["RUN", "--features", "SMALL"], "takes images of 16 pixels, and these have 32"),
        (["RUN", "-n", 8], "5 neighbors need 12 samples or more, and there are 8"),
        (["SAMPLES", "--data", "DIGITS", "--features", "pixels", "--out", "x/y"], "has no suffix"),
        (["RUN", "--no-memorization", "--out", "f.png"], "leaves nothing to draw"),
        (["RUN", "-k", 0], "Invalid value for '-k'"),
        (["RUN", "-n", 0], "-n"),
        (["RUN", "--resamples", -1], "--resamples"),
        (["RUN", "--split", "both"], "--split"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    vae_run: Path, encoder_run: Path, samples: Path, digits: Path, workplace: Path, tmp_path: Path,
    arguments: list[object], message: str,
) -> None:  # fmt: skip
    small = workplace / "checkpoints" / "vae-digits-small"
    if "SMALL" in arguments and not small.exists():
        settings = ["--data", digits, "--epochs", 1, "--image-size", 16, "--set", "width=4", "--tag", "small"]
        assert call("train", "vae", *settings, "--limit", 30).exit_code == 0
    places = {"RUN": vae_run, "ENCODER": encoder_run, "SAMPLES": samples, "DIGITS": digits, "EMPTY": tmp_path}
    places["SMALL"] = small
    result = call("fidelity", *[places.get(str(argument), argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line


def test_without_the_shipped_weights_it_says_what_to_do(
    vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "shipped_root", lambda: tmp_path / "shipped")
    fidelity_features.default_features.cache_clear()
    result = call("fidelity", vae_run, *FEW)
    assert result.exit_code == 2, result.output
    assert "simsiam is missing; sample quality needs it, install genssl again" in result.stderr


@pytest.fixture
def small_inception(monkeypatch: pytest.MonkeyPatch) -> fidelity_features.WeightsFile:
    """A small network behind Inception's name, its weights not there and not to be had."""
    digest = hashlib.sha256(b"w").hexdigest()
    file = fidelity_features.WeightsFile("w.pb", "http://127.0.0.1:9/w.pb", digest, 1)
    monkeypatch.setattr(fidelity_features, "INCEPTION", file)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    monkeypatch.setattr(fidelity_features, "inception", {b"w": network}.__getitem__)
    return file


def test_published_weights_are_missing_put_by_hand_and_used(
    samples: Path, digits: Path, tmp_path: Path, small_inception: fidelity_features.WeightsFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    chosen = ["--data", digits, "--features", "inception", "-k", 3, "--resamples", 0]
    result = call("fidelity", samples, *chosen)
    assert result.exit_code == 1, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    path = cache_folder() / "downloads" / "w.pb"
    assert f"get {small_inception.url} and put it at {path}" in line
    path.parent.mkdir(parents=True)
    path.write_bytes(b"w")
    found = json_of("fidelity", samples, *chosen)
    assert (found["features"], found["features_digest"]) == ("inception", small_inception.sha256)
    assert found["dimensions"] == 48
    assert any("24 samples for 48 feature dimensions" in note for note in found["notes"])
    assert len(list(cache_folder().glob("features-*.safetensors"))) == 2  # of the test and the train images
    chosen = [*chosen[:4], "--split", "train", "--out", tmp_path / "s.png"]
    noticed = json_of("fidelity", "--sensitivity", *chosen)
    assert (noticed["features"], noticed["dimensions"]) == ("inception", 48)


@pytest.mark.usefixtures("small_inception")
def test_these_networks_see_a_folder_of_samples_as_large_as_it_is(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity_features, "fetch", lambda *_: b"w")
    (tmp_path / "large").mkdir()
    for i in range(12):
        Image.new("RGB", (60, 50), (i, 99, 0)).save(tmp_path / "large" / f"{i:02d}.png")
    (tmp_path / "large" / "00.png").write_bytes(b"broken")
    common = Common(data=str(digits), device="cpu", skip_bad=True)
    for name, side in (("inception", 50), ("pixels", 32)):
        source = open_samples(str(tmp_path / "large"), name, common)
        assert source.image_size == side
        assert source.images(12, {}, 0, 4)[0].shape == (11, 3, side, side)


def test_what_features_notice_of_disturbed_images(
    vae_run: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json_of(
        "fidelity", "--sensitivity", "--data", digits, "--split", "train", "--features", "pixels", "-n", 40
    )
    assert (found["images"], found["features"], found["dimensions"]) == (40, "pixels", 3 * 32**2)
    rows = found["disturbances"]
    assert isinstance(rows, list)
    assert [row["disturbance"] for row in rows[::3]][:2] == ["gray", "channels permuted"]
    # All images are shuffled as well as some of them
    every = ["fidelity", "--sensitivity", "--data", digits, "--split", "train", "--features", "pixels"]
    whole, part = (json_of(*every, *more, "--out", f"{i}.png") for i, more in enumerate(([], ["-n", 60])))
    assert whole["disturbances"] == part["disturbances"]
    assert Image.open(tmp_path / "sensitivity.png").width > 900
    of_run = json_of("fidelity", vae_run, "--sensitivity", "--split", "train", "-n", 40, "--out", "b.png")
    assert (of_run["features"], of_run["data"]) == ("genssl-1", found["data"])
    assert call("fidelity", "--sensitivity").exit_code == 2
    assert call("fidelity").exit_code == 2


def test_copies_are_looked_for_where_the_run_learnt(vae_run: Path, digits: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(digits / "test", tmp_path / "other" / part)
    found = json_of(
        "fidelity", vae_run, "--data", tmp_path / "other", "-n", 12, "--features", "pixels", "-k", 3,
        "--resamples", 0, "--out", tmp_path / "f.png",
    )  # fmt: skip
    assert (found["data"], found["train_images"]) == ("other", 120)
