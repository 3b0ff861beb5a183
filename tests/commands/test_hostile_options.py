"""Options and surroundings that nobody means: one line and an exit code, before the work."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..campaign_inputs import COMMANDS
from ..conftest import call

HUGE = 10**22


def program(*words: object, **surroundings: Any) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "genssl", *map(str, words)]
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        command, stderr=subprocess.PIPE, check=False, **surroundings
    )
    return done


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "RUN", "--out", "bad\udcff.png"),
        ("sample", "RUN", "--out", "bad\udcff"),
        ("train", "vae", "--data", "bad\udcff"),
        ("report", "--out", "bad\udcff.html"),
        ("runs", "show", "bad\udcff"),
        ("data", "preview", "a\0b"),
    ],
)
def test_names_that_are_not_utf_8_are_refused_at_the_start(vae_run: Path, words: tuple[str, ...]) -> None:
    result = call(*(vae_run if word == "RUN" else word for word in words))
    assert result.exit_code == 2
    assert "not UTF-8" in result.output
    assert "using" not in result.output, "the run was loaded before"
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sample", "RUN", "-n", HUGE), "a picture shows up to 10,000"),
        (("sample", "RUN", "-n", 10**12, "--out", "folder"), "GB or more, and the disk"),
        (("fidelity", "RUN", "-n", HUGE), "200000"),
        (("importance-ll", "RUN", "-k", HUGE), "1000000"),
        (("interpolate", "RUN", "--rows", HUGE), "a picture shows up to 10,000"),
        (("linear-eval", "RUN", "--epochs", HUGE), "100000"),
        (("ablate", "vae", "--set", "width=4", "--seeds", HUGE), "1000"),
        (("train", "ddpm", "--data", "synthetic", "--timesteps", HUGE), "timesteps must be less than"),
        (("train", "vae", "--data", "synthetic", "--image-size", 16 * HUGE), "image_size must be less than"),
        (("train", "vae", "--data", "synthetic", "--epochs", HUGE**2), "epochs must be less than"),
        (("data", "preview", "synthetic", "--image-size", HUGE), "4096"),
        (("demo", "--minutes", "inf"), "1000000"),
        (("assignment", "--out", "x", "--budget", "inf"), "1000000"),
        (("train", "vae", "--data", "synthetic", "--tag", "../../x"), "no part of a name"),
        (("train", "vae", "--data", "~nouser-of-this-name/x"), "has no home folder"),
        (("runs", "show", "a" * 5000), "aaa...aaa"),
        (("train", "vae", "--set", "width=" + "a" * 5000), "(got 'aaa"),
    ],
)
def test_what_cannot_end_is_refused_in_one_line(
    vae_run: Path, tmp_path: Path, words: tuple[object, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*(vae_run if word == "RUN" else word for word in words))
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert max(map(len, result.output.splitlines())) < 2200
    assert "unexpected" not in result.output


@pytest.mark.parametrize(
    "levels", [f"1:{HUGE}:1", f"{HUGE}:{HUGE + 2}:1", f"1,{HUGE}", "1:20000:1", f"1:9:{HUGE}"]
)
def test_levels_beyond_counting_are_refused(levels: str) -> None:
    from genssl.commands.generate import parse_levels
    from genssl.errors import UserError

    if levels == f"1:9:{HUGE}":
        assert parse_levels("1:9:100") == [1]
        return
    with pytest.raises(UserError, match="cannot read the levels"):
        parse_levels(levels)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"])
def test_counts_of_torchrun_that_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    result = call("runs", "list")
    assert result.exit_code == 2
    assert result.output == f"genssl: {name}=x in the environment is no whole number; unset it\n"


@pytest.mark.parametrize("name", ["GENSSL_CACHE", "GENSSL_CHECKPOINTS"])
def test_folders_of_nobody(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "~nouser-of-this-name/x")
    result = call("data", "list")
    assert result.exit_code == 2
    assert "has no home folder" in result.output


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("words", [("--help",), ("--version",)])
def test_a_help_that_cannot_be_printed(words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        ended = program(*words, stdout=full)
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"genssl: the disk is full")
    assert ended.stderr.count(b"\n") == 1


def test_closed_streams_lose_no_work(vae_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    words = [sys.executable, "-m", "genssl", "sample", str(vae_run), "-n", "2", "--out", str(out)]
    # A file that is opened in the place of stdout would take what is printed
    code = f"import os, sys; os.close(1); os.close(2); os.execv({words[0]!r}, {words!r})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--eta", "0.5"), "--eta is for --sampler ddim, and this is dpm++"),
        (("--variance", "large", "--sampler", "ddim"), "--variance is for --sampler ancestral"),
    ],
)
def test_options_of_another_sampler_are_refused(options: tuple[str, ...], said: str) -> None:
    from genssl.config import DDPMConfig
    from genssl.errors import UserError
    from genssl.eval.sample import sampler_of
    from genssl.models.build import build

    given = dict(zip((word.removeprefix("--") for word in options[::2]), options[1::2], strict=True))
    method = build(DDPMConfig(network="tiny", timesteps=4, features_t=1, image_size=8))
    with pytest.raises(UserError, match=r"omit it") as caught:
        sampler_of(method, given)
    assert said.replace("+", "+") in str(caught.value)
    sampler_of(method, {"eta": 0.5, "sampler": "ddim"})


def test_files_of_others_stay(vae_run: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "X.json"
    theirs.write_text('{"mine": 1}')
    config = (vae_run / "config.json").read_bytes()
    assert call("sample", vae_run, "-n", 2, "--out", tmp_path / "X.png").exit_code == 0
    assert theirs.read_text() == '{"mine": 1}'
    call("sample", vae_run, "-n", 2, "--out", vae_run / "config.png")
    assert (vae_run / "config.json").read_bytes() == config
    (vae_run / "config.png").unlink(missing_ok=True)
    weights = (vae_run / "model.safetensors").read_bytes()
    refused = call("features", vae_run, "--out", vae_run / "model.safetensors")
    assert refused.exit_code == 2
    assert (vae_run / "model.safetensors").read_bytes() == weights


def test_many_samples_are_not_all_kept(
    vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genssl.commands import generate

    monkeypatch.setattr(generate, "MOST", 4)
    words = ("sample", vae_run, "-n", 11, "--batch-size", 2, "--out", tmp_path / "images", "--json")
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "images").glob("*.png"))) == 11
    assert "the first 4 samples" in result.output
    last = (tmp_path / "images" / "00010.png").read_bytes()
    (tmp_path / "images" / "00010.png").unlink()
    assert call(*words).exit_code == 0
    assert (tmp_path / "images" / "00010.png").read_bytes() == last


def test_every_command_has_its_options_in_the_fuzzer() -> None:
    """The random values themselves are tried in tests/test_fuzz.py, kind "options"."""
    words = {" ".join(words) for words, _ in COMMANDS}
    assert {"train", "sample", "runs show", "data cache clear", "assignment"} <= words
    assert all(options for name, options in COMMANDS if name == ["train"])
