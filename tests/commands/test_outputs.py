"""Nothing is replaced that the same command line did not make, whatever --out names."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from genssl import files, run_info
from genssl.commands import _outputs
from genssl.environment import record_arguments
from genssl.errors import UserError
from genssl.eval.names import file_name

from ..conftest import call

OURS = b"somebody's own file"
NOT_OURS = "exists and was not made by this command; choose another --out"


def state(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def run(vae_run: Path, tmp_path: Path) -> Path:
    """A run of its own, whose eval/ is empty."""
    shutil.copytree(vae_run, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(*arguments: object, message: str = NOT_OURS) -> None:
    """The command ends with one line, and no file is another one than before."""
    before = state(Path())
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line
    assert state(Path()) == before


def test_a_picture_leaves_the_users_json_alone_and_is_replaced_by_its_own_command(run: Path) -> None:
    Path("grid.json").write_bytes(OURS)
    for _ in range(2):
        result = call("sample", run, "-n", 4, "--out", "grid.png")
        assert result.exit_code == 0, result.output
    assert Path("grid.json").read_bytes() == OURS
    assert call("sample", run, "-n", 4, "--out", "grid.png", "--json").exit_code == 0
    refused("sample", run, "-n", 5, "--out", "grid.png")
    with Image.open("grid.png") as picture:
        assert isinstance(picture, PngImageFile)
        text = picture.text["genssl"]
        edited = picture.rotate(180)
    from PIL.PngImagePlugin import PngInfo

    kept = PngInfo()
    kept.add_text("genssl", text)
    edited.save("grid.png", pnginfo=kept)
    refused("sample", run, "-n", 4, "--out", "grid.png")


COMMANDS: dict[str, list[object]] = {
    "sample": ["-n", 4],
    "reconstruct": ["-n", 4],
    "interpolate": ["--rows", 2, "--steps", 3],
    "latent-profile": [],
    "importance-ll": ["-k", 2, "--limit", 4],
    "knn-eval": ["-k", 5],
    "linear-eval": ["--epochs", 1],
    "fidelity": ["--features", "pixels", "-n", 20, "-k", 3, "--resamples", 0],
    "bits-per-dim": [],
    "inpaint": ["--mask", "left"],
    "segment": [],
    "probe": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_evaluation_refuses_before_its_work(
    run: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("genssl.data.loading.load", no_work)
    monkeypatch.setattr("genssl.eval.sample.sample", no_work)
    Path("mine.png").write_bytes(OURS)
    Path("folder").mkdir()
    refused(command, run, *COMMANDS[command], "--out", "mine.png")
    refused(command, run, *COMMANDS[command], "--out", run / "curves.png", message="keeps its own files")
    refused(command, run, *COMMANDS[command], "--out", run / "eval" / "x.png", message="keeps its own files")


def test_the_other_commands_refuse_too(run: Path, digits: Path) -> None:
    for name in ("p.png", "m.onnx", "f.safetensors", "r.html"):
        Path(name).write_bytes(OURS)
    refused("data", "preview", digits, "-n", 4, "--out", "p.png")
    refused("export", run, "--format", "onnx", "--out", "m.onnx")
    refused("features", run, "--out", "f.safetensors")
    refused("report", run, "--out", "r.html")
    shutil.copytree(run, "other")
    refused("compare", run, "other", "--out", "p.png")
    Path("f.safetensors").unlink()
    Path("f.png").write_bytes(OURS)
    refused("features", run, "--out", "f.safetensors")  # whose picture joins it
    Path("study").mkdir()
    Path("study/ablate.json").write_bytes(OURS)
    refused("ablate", "vae", "--data", digits, "--set", "z_dim=2", "--out", "study")
    refused("ablate", "vae", "--data", digits, "--set", "z_dim=2", "--out", "p.png")


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_features_never_take_the_place_of_weights(run: Path, name: str) -> None:
    (run / "state.safetensors").unlink(missing_ok=True)
    refused("features", run, "--out", run / name, message="keeps its own files")


def test_a_picture_named_like_the_settings_leaves_them_alone(run: Path) -> None:
    before = (run / "config.json").read_bytes()
    assert call("sample", run, "-n", 4, "--out", run / "config.png").exit_code == 0
    assert (run / "config.json").read_bytes() == before


def test_a_folder_of_images_is_refilled_by_its_own_command_alone(run: Path) -> None:
    Path("imgs-grid.json").write_bytes(OURS)
    for _ in range(2):
        assert call("sample", run, "-n", 4, "--out", "imgs").exit_code == 0
    assert Path("imgs-grid.json").read_bytes() == OURS
    refused("sample", run, "-n", 3, "--out", "imgs", message="is not empty")
    Path("imgs/notes.txt").write_bytes(OURS)
    refused("sample", run, "-n", 4, "--out", "imgs", message="is not empty")
    Path("imgs/notes.txt").unlink()
    Path("imgs-grid.png").write_bytes(OURS)
    refused("sample", run, "-n", 4, "--out", "imgs")


def test_leftovers_of_a_folder_go(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("data", "export", digits, "--out", "real").exit_code == 0
    count = len(list(Path("real").iterdir()))
    shutil.copy("real/00000.png", f"real/{count:05d}.png")  # as of a larger split
    assert call("data", "export", digits, "--out", "real").exit_code == 0
    assert len(list(Path("real").iterdir())) == count


def test_a_further_picture_takes_a_number(run: Path) -> None:
    Path("k-neighbors.png").write_bytes(OURS)
    assert call("knn-eval", run, "-k", 5, "--out", "k.png").exit_code == 0
    assert Path("k-neighbors.png").read_bytes() == OURS
    assert Path("k-neighbors-2.png").exists()


def test_usual_names_in_the_current_folder_take_numbers(run: Path, digits: Path) -> None:
    Path("preview.png").write_bytes(OURS)
    Path("run-torchvision.safetensors").write_bytes(OURS)
    for _ in range(2):
        assert call("data", "preview", digits, "-n", 4).exit_code == 0
    assert Path("preview.png").read_bytes() == OURS
    assert sorted(file.name for file in Path().glob("preview*")) == ["preview-2.png", "preview.png"]


def test_results_that_a_run_cannot_take_do_not_replace_what_is_here(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_outputs, "is_writable_run", lambda folder: False)
    Path("run-sample-n4.json").write_bytes(OURS)
    for _ in range(2):
        assert call("sample", run, "-n", 4).exit_code == 0
    assert Path("run-sample-n4.json").read_bytes() == OURS
    found = sorted(file.name for file in Path().glob("run-*"))
    assert found == ["run-sample-n4-2.json", "run-sample-n4-2.png", "run-sample-n4.json"]


def test_options_that_matter_are_in_the_name(run: Path) -> None:
    assert call("reconstruct", run).exit_code == 0
    before = (run / "eval" / "reconstruct.png").read_bytes()
    assert call("reconstruct", run, "-n", 4, "--batch-size", 8, "--json").exit_code == 0
    assert (run / "eval" / "reconstruct.png").read_bytes() == before
    assert sorted(file.name for file in (run / "eval").glob("*.json")) == [
        "reconstruct-n4.json", "reconstruct.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "changed", "name"),
    [
        ("sample", {}, "sample"),
        ("sample", {"n": 16, "sampler": "ancestral", "trajectory": True}, "sample-n16-ancestral"),
        ("sample", {"data": "svhn", "eta": 0.5, "sampler": "dpm++"}, "sample-eta0.5-dpm"),
        ("reconstruct", {"sweep": "16:256:16"}, "noise-levels"),
        ("reconstruct", {"sweep": "16:256:80", "queries": 32}, "noise-levels-queries32-16-256-80"),
        ("reconstruct", {"t_prime": 176, "n": 4}, "reconstruct-176-n4"),
        ("features", {"split": "train", "limit": 9}, "features-train-limit9"),
        (
            "knn-eval",
            {"data": "svhn-remix", "baselines": False, "k": 20},
            "knn-eval-no-baselines-data-svhn-remix-k20",
        ),
        (
            "segment",
            {"beside": ["simsiam", "vae"], "labeled": [20, 50]},
            "segment-beside-simsiam-vae-labeled20-50",
        ),
        ("probe", {"label_fractions": ["0.01,0.1", "1"]}, "probe-labelfractions0.01-0.1-1"),
        ("purify", {"eps": ".1"}, "purify-eps0.1"),
        ("purify", {"step": ".1"}, "purify-step0.1"),
        ("segment", {"times": [".15,1", "5"]}, "segment-times0.15-1-5"),
        ("sample", {"class_label": "7", "n": 4}, "sample-class7-n4"),
        ("sample", {"class_label": "all"}, "sample-class-all"),
        ("linear-eval", {"augment": True, "seed": 1, "device": "cpu"}, "linear-eval-augment-seed1"),
    ],
)
def test_names(command: str, changed: dict[str, object], name: str) -> None:
    assert file_name(command, changed) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [({"class_label": "猫"}, {"class_label": "狗"}), ({"class_label": "a/b"}, {"class_label": "a b"}),
     ({"guidance": -1.0}, {"guidance": 1.0})],
)  # fmt: skip
def test_values_that_a_name_cannot_show_are_told_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (file_name("sample", {"n": 4, **changed}) for changed in (one, other))
    assert first != second
    assert re.fullmatch(r"[\w.-]+", first, re.ASCII)


def test_data_of_one_name_are_told_apart_by_their_paths() -> None:
    one, other = (file_name("knn-eval", {"data": f"{folder}/digits.zip"}) for folder in "ab")
    assert one != other
    assert one.startswith("knn-eval-data-digits-")
    assert len(file_name("knn-eval", {"data": f"a/{'x' * 300}.zip"})) <= 150


def test_names_of_a_runs_files_are_those_of_the_modules_that_need_torch() -> None:
    names = (
        run_info.MODEL,
        run_info.STATE,
        run_info.CONFIG,
        run_info.HISTORY,
        run_info.ENVIRONMENT,
    )
    assert set(names) <= _outputs.RUN_FILES


def test_features_and_weights_for_others_say_who_made_them(run: Path) -> None:
    for _ in range(2):
        result = call("features", run, "--out", "f.safetensors")
        assert result.exit_code == 0, result.output
    refused("features", run, "--out", "f.safetensors", "--split", "train")
    tensors, _ = files.read_tensors(Path("f.safetensors"))
    assert torch.isfinite(tensors["features"]).all()


def test_a_report_is_replaced_by_its_own_command_or_in_a_folder_of_runs(run: Path) -> None:
    Path("report.html").write_bytes(OURS)
    for words in ([], ["--json"], ["--out", "mine.html"], ["--out", "mine.html"]):
        result = call("report", run, *words)
        assert result.exit_code == 0, result.output
    assert Path("report.html").read_bytes() == OURS
    (run / "report.html").write_text((run / "report.html").read_text() + "my remark")
    assert call("report", run).exit_code == 0
    assert "my remark" in (run / "report.html").read_text()
    assert (run / "report-2.html").exists()
    refused("report", run, run, "--out", "mine.html")


def test_what_a_killed_study_left_is_removed_by_the_next_call_alone(tmp_path: Path) -> None:
    left = [".ablate.png.ab12cd_4.tmp", ".ablate.json.ab12cd_4.tmp", ".ablate-ranking.png.ab12cd_4.tmp"]
    names = [*left, ".mine.png.ab12cd_4.tmp", "ablate.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    with record_arguments(["ablate", "vae"]):
        _outputs.target_of_study(tmp_path, "ablate", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".mine.png.ab12cd_4.tmp", "ablate.tmp"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_numbers_come_last_and_are_not_lost_where_a_picture_cannot_be_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    folder = run / "eval"
    folder.mkdir(exist_ok=True)
    half = folder / ".interpolate-rows1.png.ab12cd_4.tmp"
    other = folder / ".interpolate-rows12.png.ab12cd_4.tmp"  # of a command that may be at work
    for file in (half, other):
        file.write_text("")

    def fail(*_: object) -> None:
        raise error("no picture")

    numbers = folder / "interpolate-rows1.json"
    with monkeypatch.context() as patch:
        patch.setattr(_outputs, "write_picture", fail)
        assert call("interpolate", run, "--rows", 1).exit_code != 0
    assert not half.exists()
    assert other.exists()
    assert numbers.exists() is (error is UserError)
    assert call("interpolate", run, "--rows", 1).exit_code == 0
    assert numbers.exists()
    assert numbers.with_suffix(".png").exists()
