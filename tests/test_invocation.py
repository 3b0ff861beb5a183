"""The command line that numbers remember."""

import json
import shlex
from pathlib import Path

from genssl.environment import command_line, record_arguments
from genssl.files import command_of

from .conftest import call


def test_an_inner_command_is_the_one_carried_out_and_the_outer_one_comes_back() -> None:
    with record_arguments(["assignment", "--out", "a b"]):
        with record_arguments(["train", "vae"]):
            assert command_line() == "genssl train vae"
        assert shlex.split(command_line()) == ["genssl", "assignment", "--out", "a b"]
    assert not command_line().startswith("genssl assignment")


def test_a_run_and_its_numbers_say_how_they_were_made(vae_run: Path, tmp_path: Path) -> None:
    trained = json.loads((vae_run / "environment.json").read_text())["command"]
    assert shlex.split(trained)[:3] == ["genssl", "train", "vae"]
    picture = tmp_path / "grid.png"
    arguments = ["sample", "vae", "--checkpoint", str(vae_run), "-n", "4", "--out", str(picture)]
    assert call(*arguments).exit_code == 0
    assert shlex.split(str(command_of(picture))) == ["genssl", *arguments]
    assert call(*arguments[:-2]).exit_code == 0
    made = json.loads((vae_run / "eval" / "sample-n4.json").read_text())
    assert shlex.split(made["command"]) == ["genssl", *arguments[:-2]]
