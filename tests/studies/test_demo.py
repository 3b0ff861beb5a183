"""The first five minutes, and the weights that come with genssl."""

import json
from pathlib import Path

import pytest

from genssl import files, paths, run_info
from genssl.config import SelfSupervisedConfig
from genssl.data.synthetic import render
from genssl.studies.demo import SHIPPED, bring_shipped

from ..conftest import call

METHODS = ("vae", "ddpm", "flow", "simsiam")


@pytest.mark.slow
@pytest.mark.figures
def test_the_demo_ends_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(render, "TRAIN_IMAGES", 600)
    monkeypatch.setattr(render, "TEST_IMAGES", 300)
    out = tmp_path / "demo"
    result = call("demo", "--out", out, "--minutes", 0.05)
    assert result.exit_code == 0, result.output
    told = json.loads(call("report", out, "--json").stdout)
    drawn = {figure["figure"] for figure in told["figures"] if figure["drawn"]}
    assert drawn == set(range(1, 11))  # the ablations of SimSiam take longer than a demo
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "trained for 0.05 minutes" in page
    assert page.count("weights that come with genssl") >= len(SHIPPED)
    before = (out / "vae" / "model.safetensors").stat().st_mtime_ns
    again = call("demo", "--out", out, "--minutes", 0.05)
    assert (again.exit_code, again.stderr.count("done before")) == (0, 13)
    assert (out / "vae" / "model.safetensors").stat().st_mtime_ns == before


def test_shipped_generators_know_their_training_images() -> None:
    for method in ("vae", "ddpm"):
        assert run_info.inspect(paths.shipped_root() / method).metrics["train_sharpness"] > 0


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    result = call("demo", "--out", tmp_path)
    assert (result.exit_code, "holds something else" in result.stderr) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_process_at_a_time_fills_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    lock = files.FolderLock(out, "taken")
    result = call("demo", "--out", out)
    lock.release()
    assert (result.exit_code, "another process is at work" in result.stderr) == (2, True)
    assert not (out / "ddpm").exists()


def test_shipped_weights_are_sound_and_small() -> None:
    folders = {folder.name: folder for folder in paths.shipped_root().iterdir() if folder.is_dir()}
    assert sorted(folders) == sorted(METHODS)
    for method, folder in folders.items():
        info = run_info.inspect(folder)
        assert (info.config.method, info.config.data, info.finished) == (method, "synthetic", True)
        assert run_info.verify(folder) == []
        history = (folder / "history.jsonl").read_text().splitlines()
        assert len(history) == info.config.epochs == info.epoch
        command = json.loads((folder / "environment.json").read_text())["command"]
        assert command.startswith(f"genssl train {method} --data synthetic")
        if isinstance(info.config, SelfSupervisedConfig):
            assert info.config.projector_dim <= 512
    sizes = {file: file.stat().st_size for file in paths.shipped_root().rglob("*") if file.is_file()}
    assert sum(sizes.values()) < 25e6  # a package of a size that an index takes gladly
    assert sum(size for file, size in sizes.items() if file.parent.name != "simsiam") < 20e6


@pytest.mark.parametrize("method", ["vae", "ddpm"])
def test_a_method_without_runs_means_its_shipped_weights(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    result = call("sample", method, "-n", 4, "--json")
    assert result.exit_code == 0, result.output
    assert "weights that come with genssl" in result.stderr
    assert (tmp_path / f"{method}-sample-n4.png").exists()  # beside the person, not in the package


def test_copies_of_shipped_weights_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / ".ddpm").mkdir()  # left by a call that was cut short
    for _ in range(2):
        bring_shipped(tmp_path)
        assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(SHIPPED)
    for method in SHIPPED:
        assert "not trained here" in (tmp_path / method / "SHIPPED.txt").read_text()
        assert run_info.verify(tmp_path / method) == []
