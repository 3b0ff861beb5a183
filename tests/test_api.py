"""genssl.train, evaluate and Run: what the commands do, from Python."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import genssl
from genssl import api, cli, run_info
from genssl.commands import _console
from genssl.errors import UserError
from genssl.training.events import EpochEnded, Started, TrainingProgress

from .peers import import_peer

SMALL: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 32,
    "width": 8,
    "z_dim": 8,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> genssl.Run:
    folder = tmp_path_factory.mktemp("api")
    return genssl.train("vae", data=str(digits), out=folder / "checkpoints" / "small-vae", **SMALL)


@pytest.fixture
def vae(trained: genssl.Run, monkeypatch: pytest.MonkeyPatch) -> genssl.Run:
    monkeypatch.chdir(trained.path.parents[1])
    return trained


def test_training_gives_the_run_of_the_command(vae: genssl.Run, digits: Path, tmp_path: Path) -> None:
    words = ["train", "vae", "--data", str(digits), "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
    words += ["--set", "width=8", "--set", "z_dim=8", "--out", str(tmp_path / "by-command")]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    weights = [run_info.inspect(path).digest for path in (vae.path, tmp_path / "by-command")]
    assert weights[0] == weights[1]


def test_a_run_tells_its_settings_numbers_and_samples(vae: genssl.Run) -> None:
    assert (vae.state, vae.config.method, vae.config.epochs) == ("finished", "vae", 1)
    assert [record["epoch"] for record in vae.history] == [1]
    assert vae.history[0]["loss"] > 0
    assert vae.sample(2).shape == (2, 3, 32, 32)
    assert vae.features(torch.zeros(2, 3, 32, 32)).shape == (2, 8)
    assert genssl.Run.find(vae.path) == vae == genssl.Run.find(vae.path / run_info.MODEL)


def test_a_model_file_of_another_name_stands_for_no_run(vae: genssl.Run, tmp_path: Path) -> None:
    other = shutil.copytree(vae.path, tmp_path / "run") / "other.safetensors"
    shutil.copy(vae.path / run_info.MODEL, other)
    with pytest.raises(UserError, match="name its run folder"):
        genssl.Run.find(other)
    for command in (["push", other, "someone/x", "--dry-run"], ["report", other]):
        result = CliRunner().invoke(cli.app, [str(word) for word in command])
        assert (result.exit_code, "name its run folder" in result.stderr) == (2, True)


def test_callbacks_are_told_every_event(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    events: list[Any] = []
    genssl.train("vae", data=str(digits), callbacks=[events.append], **SMALL)
    kinds = [type(event) for event in events]
    assert kinds.index(Started) < kinds.index(EpochEnded)
    assert next(e.record for e in events if isinstance(e, EpochEnded))["epoch"] == 1


def test_loggers_are_those_of_the_command(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for logger in ("csv", ["csv", "csv"]):
        run = genssl.train("vae", data=str(digits), logger=logger, tag="logged", **SMALL)
        header, *rows = (run.path / "metrics.csv").read_text().splitlines()
        assert header.split(",")[:3] == ["epoch", "step", "loss"]
        assert [row.split(",")[0] for row in rows] == ["1"]
    with pytest.raises(UserError, match="no logger 'cvs'"):
        genssl.train("vae", data=str(digits), logger="cvs", **SMALL)


def test_an_evaluation_is_that_of_the_command(
    vae: genssl.Run, digits: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = genssl.evaluate("knn-eval", vae, k=[3, 5], batch_size=64, baselines=False, device="cpu")
    assert capfd.readouterr().out == ""
    words = ["knn-eval", str(vae.path), "-k", "3", "-k", "5", "--no-baselines", "--device", "cpu", "--json"]
    printed = json.loads(CliRunner().invoke(cli.app, words).stdout)
    assert result.values["accuracy_by_k"] == printed["accuracy_by_k"]
    assert result.values["accuracy"] == printed["accuracy"]
    # A command after it prints again
    assert "kNN" in CliRunner().invoke(cli.app, words[:-1]).stdout


def test_options_are_named_as_the_command_names_them(vae: genssl.Run) -> None:
    command = api._evaluations()["knn-eval"]
    given = {"test_limit": 4, "baselines": False, "k": (1, 2), "data": None}
    assert api._arguments(command, given) == ["--test-limit", "4", "--no-baselines", "-k", "1", "-k", "2"]
    assert api._arguments(command, {"baselines": True}) == ["--baselines"]
    assert api._arguments(api._evaluations()["sample"], {"class_label": 3}) == ["--class", "3"]


@pytest.mark.parametrize(
    ("name", "ref", "options", "message"),
    [
        ("no-such", "vae", {}, "no evaluation 'no-such'; there are sample"),
        ("knn-eval", "vae", {"neighbors": 5}, "knn-eval has no option neighbors; it has"),
        ("knn-eval", "vae", {"k": 0}, "Invalid value for '-k'"),
        ("knn-eval", "nothing", {}, "no run 'nothing'"),
        ("bits-per-dim", "vae", {}, "this is a vae"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_error(
    vae: genssl.Run, name: str, ref: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        genssl.evaluate(name, ref, **options)


def test_what_cannot_be_trained_is_said_in_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="depht"):
        genssl.train("vae", depht=3)
    with pytest.raises(UserError, match="no-such-folder"):
        genssl.train("vae", data="no-such-folder")
    assert not (tmp_path / "checkpoints").exists()


def test_a_notebook_shows_runs_and_results(vae: genssl.Run) -> None:
    shown = vae._repr_html_()
    assert "finished" in shown
    assert "data:image/png;base64" in shown
    result = vae.evaluate("reconstruct", n=2, device="cpu")
    shown = result._repr_html_()
    assert f"{result.values['psnr_db']:,.6g}" in shown
    assert "data:image/png;base64" in shown
    hostile = type(result)({"<script>": "<b>"}, notes=("<i>",), title="<u>")._repr_html_()
    assert "<script>" not in hostile
    assert "<b>" not in hostile
    assert "<i>" not in hostile
    assert "<u>" not in hostile


def test_progress_in_a_notebook_replaces_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    display: Any = ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda *_, **__: SimpleNamespace(update=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    screen = _console.NotebookScreen()
    screen(TrainingProgress(1, 2, 3, 10, 100.0, {"<loss>": 0.5}, 60.0, 2**30))
    assert 'value="3" max="10"' in shown[-1]
    assert "&lt;loss&gt; 0.5" in shown[-1]


def test_a_table_of_the_history_needs_pandas(vae: genssl.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        vae.history.to_pandas()


def test_the_history_is_a_table(vae: genssl.Run) -> None:
    import_peer("pandas")
    table = vae.history.to_pandas()
    assert list(table.index) == [1]
    assert table["loss"][1] == vae.history[0]["loss"]
