from pathlib import Path

import pytest

from genssl.data import synthetic

from ..conftest import call


@pytest.mark.slow
def test_the_demo_leaves_pictures_and_a_report_of_its_numbers(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(synthetic, "TRAIN_IMAGES", 600)
    monkeypatch.setattr(synthetic, "TEST_IMAGES", 100)
    for number, run in enumerate(("run", "run-2")):  # a second demo leaves the first one's run alone
        result = call("demo", "--out", tmp_path / "demo", "--minutes", 0.05)
        assert result.exit_code == 0, result.output
        assert (tmp_path / "demo" / run / "model.safetensors").exists(), number
    for name in ("data", "samples", "reconstructions", "interpolations", "latent-profile", "likelihood"):
        assert (tmp_path / "demo" / f"{name}.png").exists()
    assert (tmp_path / "demo" / "numbers.json").exists()
    assert (tmp_path / "demo" / "run" / "samples-over-epochs.png").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    result = call("demo", "--out", tmp_path)
    assert (result.exit_code, "holds something else" in result.stderr) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
