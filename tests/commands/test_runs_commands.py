"""runs list, compare and remove."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from genssl import files, paths, run_info, runs
from genssl.commands import runs as commands
from genssl.errors import UserError

from ..conftest import call


@pytest.fixture
def root(vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three runs of one config: weights of 1, 2 and 2 epochs, with losses 3, 1 and none."""
    folder = tmp_path / "checkpoints"
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(folder))
    for name, epoch, metrics in (("a", 1, {"loss": 3.0}), ("b", 2, {"loss": 1.0}), ("c", 2, {})):
        shutil.copytree(vae_run, folder / name)
        tensors, texts = files.read_tensors(vae_run / run_info.MODEL)
        texts = {key: value for key, value in texts.items() if key not in {files.TENSORS, files.SHA256}}
        texts |= {"epoch": str(epoch), "metrics": json.dumps(metrics)}
        files.write_tensors(folder / name / run_info.MODEL, tensors, texts)
    return folder


def listed(*arguments: object) -> list[Any]:
    result = call("runs", "list", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return list(json.loads(result.stdout))


def names(*arguments: object) -> list[str]:
    return [row["run"] for row in listed(*arguments)]


def test_runs_are_sorted_by_a_number_and_those_without_it_come_last(root: Path) -> None:
    assert names("--sort", "loss") == ["b", "a", "c"]
    assert names("--sort", "loss", "--descending") == ["a", "b", "c"]
    assert names("--sort", "epoch", "--filter", "loss>0") == ["a", "b"]


@pytest.mark.parametrize(
    ("condition", "chosen"),
    [
        ("loss<2", {"b"}),
        ("loss=3", {"a"}),
        ("epoch>1", {"b", "c"}),
        ("method=VAE", {"a", "b", "c"}),
        ("z_dim=6.0", {"a", "b", "c"}),
        ("state=finished", {"b", "c"}),
        ("run = a", {"a"}),
        ("decoder_variance=unit", set()),
    ],
)
def test_runs_are_chosen_by_settings_and_numbers(root: Path, condition: str, chosen: set[str]) -> None:
    assert set(names("--filter", condition)) == chosen


def test_conditions_hold_together_and_their_values_are_shown(root: Path) -> None:
    (row,) = listed("--filter", "loss<2", "--filter", "z_dim>5")
    assert (row["run"], row["z_dim"]) == ("b", 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "loss"], "--filter takes data=cifar10"),
        (["--filter", "loss<few"], "--filter takes data=cifar10"),
        (["--filter", "no_such=1"], "no run has a setting or number no_such"),
        (["--sort", "no_such"], "no run has a setting or number no_such"),
    ],
)
def test_what_no_run_has_is_said(root: Path, arguments: list[str], message: str) -> None:
    result = call("runs", "list", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_runs_of_ablations_are_listed_when_asked_for(root: Path) -> None:
    shutil.move(root / "c", root / "arms" / "c")
    assert set(names()) == {"a", "b"}
    assert set(names("--arms")) == {"a", "b", "c"}


def test_runs_are_compared_in_what_differs(root: Path, vae_run: Path) -> None:
    result = call("runs", "compare", "a", "b", "--json")
    shown = json.loads(result.stdout)
    assert shown["settings that differ"] == []
    assert shown["numbers"] == [{"": "loss", "a": 3.0, "b": 1.0}]
    config = json.loads((root / "b" / run_info.CONFIG).read_text())
    tensors, texts = files.read_tensors(root / "b" / run_info.MODEL)
    kept = {key: value for key, value in texts.items() if key not in {files.TENSORS, files.SHA256}}
    changed = json.dumps({**config, "seed": 7})
    files.write_tensors(root / "b" / run_info.MODEL, tensors, {**kept, "config": changed})
    shown = json.loads(call("runs", "compare", "a", "b", "--json").stdout)
    assert shown["settings that differ"] == [{"": "seed", "a": 0, "b": 7}]
    assert "seed" in call("runs", "compare", "a", "b").stdout
    assert call("runs", "compare", "a").exit_code == 2


def test_runs_of_one_name_have_columns_of_their_own() -> None:
    assert commands._distinct(["a", "b", "a"]) == ["a", "b", "a (3)"]


def test_a_run_is_removed_when_that_is_agreed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = call("runs", "remove", "a")
    assert refused.exit_code == 2
    assert "--yes removes without asking" in refused.stderr
    assert (root / "a").exists()
    assert call("runs", "remove", "a", "b", "--yes").exit_code == 0
    assert sorted(folder.name for folder in root.iterdir()) == ["c"]


def test_a_removed_link_leaves_what_it_leads_to(root: Path) -> None:
    (root / "link").symlink_to(root / "a")
    (root / "b" / "eval").mkdir(exist_ok=True)
    (root / "b" / "eval" / "out").symlink_to(root / "a", target_is_directory=True)
    assert call("runs", "remove", "link", "b", "--yes").exit_code == 0
    assert (root / "a" / run_info.MODEL).exists()


def test_what_is_shipped_trained_or_no_run_is_not_removed(root: Path, vae_run: Path) -> None:
    with pytest.raises(UserError, match="comes with genssl"):
        runs.removable(str(paths.shipped_root() / "vae"))
    with pytest.raises(UserError, match="no run folder vae"):
        runs.removable("vae")  # a method is not one run
    with pytest.raises(UserError, match="no run folder"):
        runs.removable(str(root))
    lock = files.FolderLock(root / "a", "held")
    result = call("runs", "remove", "b", "a", "--yes")
    lock.release()
    assert result.exit_code == 2
    assert "being trained" in result.stderr
    assert (root / "b").exists()
