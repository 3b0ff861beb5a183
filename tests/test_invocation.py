"""What numbers remember of their making: the command line, versions and the revision."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

from genssl.environment import (
    PACKAGES,
    SOURCE,
    command_line,
    command_of,
    git_revision,
    record_arguments,
    system,
)

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


def repository(folder: Path, package: str = "genssl") -> Path:
    """A checkout with a commit, and a package in it."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text("")
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def test_the_revision_is_that_of_the_checkout_of_this_package(tmp_path: Path) -> None:
    checkout = repository(tmp_path / "checkout")
    revision = git_revision(checkout / "genssl")
    assert revision is not None
    assert not revision.endswith("+")
    (checkout / "pyproject.toml").write_text("changed")
    assert git_revision(checkout / "genssl") == f"{revision}+"


def test_an_installed_package_has_no_revision(tmp_path: Path) -> None:
    """Not even where its virtual environment lies in somebody's repository."""
    installed = repository(tmp_path / "thesis") / ".venv" / "lib" / "site-packages" / "genssl"
    installed.mkdir(parents=True)
    assert git_revision(installed) is None
    (tmp_path / "plain" / "genssl").mkdir(parents=True)
    assert git_revision(tmp_path / "plain" / "genssl") is None


def test_a_package_unpacked_in_another_repository_has_no_revision(tmp_path: Path) -> None:
    """Its files lie in the work tree, but git does not track them: the revision says nothing of them."""
    thesis = repository(tmp_path / "thesis", package="chapter")
    unpacked = thesis / "genssl"
    unpacked.mkdir()
    (unpacked / "__init__.py").write_text("")
    assert git_revision(thesis / "chapter") is None
    assert git_revision(unpacked) is None


def test_the_versions_are_those_of_the_dependencies() -> None:
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]
    required = {re.split("[<>=~! ;\\[]", text)[0].lower() for text in project["dependencies"]}
    assert set(PACKAGES) - {"genssl"} <= required
    assert "not installed" not in system()["versions"].values()
