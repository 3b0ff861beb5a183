import json
from pathlib import Path

import pytest

from genssl import paths
from genssl.report import load

from ..conftest import call
from ..report import folder


def test_the_page_goes_into_the_folder_that_it_is_about(tmp_path: Path) -> None:
    folder.whole(tmp_path)
    result = call("report", tmp_path, "--template", "assignment")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").exists()
    assert "2 runs, 13 of the assignment's 13 figures" in " ".join(result.stderr.split())


def test_without_a_reference_everything_in_checkpoints_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    folder.run(tmp_path / "vae-digits", "vae")
    folder.run(tmp_path / "arms" / "arm", "simsiam")
    result = call("report", "--json", "--template", "assignment", "--out", tmp_path / "page.html")
    about = json.loads(result.stdout)
    assert about["runs"] == ["vae-digits", "arm"]
    assert about["report"] == str(tmp_path / "page.html")
    assert about["bytes"] == (tmp_path / "page.html").stat().st_size
    assert [figure["drawn"] for figure in about["figures"]] == [True] * 3 + [False] * 10
    assert about["figures"][3]["commands"] == ["genssl sample vae-digits -n 64"]
    assert about["figures"][9]["commands"][0] == "genssl train ddpm --epochs 70"


@pytest.mark.parametrize("reference", ["vae", "VAE", "vae-digits", "arms/arm", "arm"])
def test_a_run_is_named_as_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    folder.run(tmp_path / "vae-digits", "vae")
    folder.run(tmp_path / "arms" / "arm", "vae")
    result = call("report", reference, reference, "--json")
    name = "arm" if "arm" in reference else "vae-digits"
    about = json.loads(result.stdout)
    assert about["runs"] == [name]
    assert Path(about["report"]).parent.name == name


def test_several_folders_make_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "checkpoints"))
    folder.run(tmp_path / "a" / "vae-one", "vae")
    folder.ablation(tmp_path / "b" / "study", [{"projector_dim": 64}])
    result = call("report", tmp_path / "a", tmp_path / "b", "--json")
    about = json.loads(result.stdout)
    assert about["report"] == str(tmp_path / "checkpoints" / "report.html")
    assert [figure["figure"] for figure in about["figures"]] == [1, 2, 3, 13]  # those that are there


@pytest.mark.parametrize("reference", ["nothing", "byol", "empty"])
def test_what_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = call("report", reference)
    told = "empty holds no run" if reference == "empty" else f"no run '{reference}'"
    assert (result.exit_code, told in result.stderr) == (2, True)
    result = call("report")
    assert (result.exit_code, "no run and no study" in result.stderr) == (2, True)
    assert not (tmp_path / "checkpoints").exists()


def test_shipped_weights_are_reported_but_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr(paths, "shipped_root", lambda: tmp_path / "shipped")
    monkeypatch.setattr(load, "shipped_root", lambda: tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    folder.run(tmp_path / "shipped" / "ddpm", "ddpm")
    for reference in ("ddpm", "shipped", "shipped/ddpm/model.safetensors"):
        result = call("report", reference, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["report"] == "report.html"
        assert "come with genssl" in (tmp_path / "report.html").read_text()
        (tmp_path / "report.html").unlink()


def test_out_is_a_page_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    folder.run(tmp_path / "vae-digits", "vae")
    assert call("report", "--out", tmp_path / "new").exit_code == 0
    assert (tmp_path / "new" / "report.html").exists()
    result = call("report", "--out", tmp_path / "page.png")
    assert (result.exit_code, "page.html" in result.stderr) == (2, True)
