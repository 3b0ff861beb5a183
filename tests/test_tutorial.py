"""The first hour of docs/tutorial.md, word for word, in the order of the page."""

import re
import shlex
from pathlib import Path

import pytest

from genssl.data.synthetic import render

from .conftest import call
from .test_docs import ROOT

PAGE = ROOT / "docs" / "tutorial.md"


def blocks() -> list[tuple[str, str]]:
    """Kind and text of each code block."""
    return re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.figures
def test_every_line_of_the_first_hour_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENSSL_CHECKPOINTS", "checkpoints")
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    # As many as the page asks for, not all 24,000
    monkeypatch.setattr(render, "TRAIN_IMAGES", 2000)
    monkeypatch.setattr(render, "TEST_IMAGES", 500)
    assert len(blocks()) >= 8
    for kind, text in blocks():
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.splitlines():
            program, *words = shlex.split(line)
            assert program == "genssl"
            result = call(*words)
            assert result.exit_code == 0, f"{line}: {result.output}"
    made = ["preview.png", "vae.png", "ddpm.png", "checkpoints/report.html", "from-python/model.safetensors"]
    made += [
        f"checkpoints/vae-synthetic-first/{name}" for name in ("config.json", "history.jsonl", "curves.png")
    ]
    for name in made:
        assert (tmp_path / name).stat().st_size > 0, name
