"""Loggers: what reaches them of a run, once, and that they do no harm."""

import csv
import importlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genssl import run_info
from genssl.config import VAEConfig
from genssl.errors import FAILED_RUN, WRONG_INPUT, UserError
from genssl.settings import Config
from genssl.training import loggers, run
from genssl.training.events import Event, Note
from genssl.training.loop import Step
from genssl.training.options import LoggerName, Options, checked_loggers, resume_hint

from ..conftest import call
from ..peers import import_service
from .test_run import config, same_weights, train, without_time

# Each package as far as it is used: calls go to a file of JSON lines, so that other processes' are seen, too
STAND_INS = {
    "wandb.py": """
import json, os
from pathlib import Path

def tell(*call):
    with Path(os.environ["STAND_IN_LOG"]).open("a") as file:
        file.write(json.dumps([os.environ.get("RANK", "0"), *call]) + "\\n")

class Settings:
    def __init__(self, silent, console): pass

class Image:
    def __init__(self, picture): self.size = picture.size

class Run:
    url, offline = "https://wandb.example/run", False
    def log(self, values, step):
        if os.environ.get("STAND_IN_FAILS") == str(step): raise ConnectionError("network\\nis gone")
        tell("log", step, {k: v.size if isinstance(v, Image) else v for k, v in values.items()})
    def finish(self, exit_code): tell("finish", exit_code)

def init(*, project, id, resume, name, dir, config, settings):
    if os.environ.get("STAND_IN_FAILS") == "init": raise RuntimeError("No API key.")
    tell("init", project, id, resume, name, dir, config)
    return Run()
""",
    "mlflow/__init__.py": """
import json, os
from pathlib import Path
from types import SimpleNamespace
from . import entities

def tell(*call):
    with Path(os.environ["STAND_IN_LOG"]).open("a") as file:
        file.write(json.dumps([os.environ.get("RANK", "0"), *call]) + "\\n")

class MlflowClient:
    def __init__(self, tracking_uri): tell("client", tracking_uri)
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name, artifacts): tell("experiment", name, artifacts); return "7"
    def create_run(self, number, run_name):
        tell("create", number, run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    def update_run(self, run, status): tell("update", run, status)
    def log_batch(self, run, metrics=(), params=()):
        for metric in metrics: tell("metric", run, metric.step, metric.key, metric.value)
        for param in params: tell("param", run, param.key, param.value)
    def log_image(self, run, picture, artifact_file): tell("image", run, artifact_file, picture.size)
    def set_terminated(self, run, status): tell("end", run, status)
""",
    "mlflow/entities.py": """
class Metric:
    def __init__(self, key, value, timestamp, step): self.key, self.value, self.step = key, value, step

class Param:
    def __init__(self, key, value): self.key, self.value = key, value
""",
}
SERVICES = ("wandb", "mlflow")


def forget(*names: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in names]:
        del sys.modules[name]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the stand-ins of wandb and mlflow are told, in the place of both packages."""
    for name, text in STAND_INS.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "calls.jsonl"))
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "STAND_IN_FAILS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    forget(*SERVICES)
    yield tmp_path / "calls.jsonl"
    forget(*SERVICES)


def told(calls: Path, name: str) -> list[list[Any]]:
    """The arguments of every call of this name."""
    lines = [json.loads(line) for line in calls.read_text().splitlines()]
    return [line[2:] for line in lines if line[1] == name]


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / run_info.HISTORY).read_text().splitlines()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / loggers.CSV).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_the_table_is_the_history(digits: Path, tmp_path: Path) -> None:
    train(config(digits), tmp_path / "run", loggers=("csv",))
    table, records = rows(tmp_path / "run"), history(tmp_path / "run")
    assert [row["step"] for row in table] == ["7", "14", "21"]
    for row, record in zip(table, records, strict=True):
        assert {name: float(text) for name, text in row.items() if text} == pytest.approx(record)


def test_a_column_that_comes_later_is_empty_before(tmp_path: Path) -> None:
    logger = loggers.CsvLogger(tmp_path, [{"epoch": 1, "step": 7, "loss": 2.0}], VAEConfig())
    logger.epoch({"epoch": 2, "step": 14, "loss": None, "knn_accuracy": 0.5}, {})
    text = (tmp_path / loggers.CSV).read_text()
    assert text == "epoch,step,loss,knn_accuracy\n1,7,2.0,\n2,14,,0.5\n"


def train_and_stop(
    config: Config, folder: Path, at: int, names: tuple[LoggerName, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train until step at + 3 and stop without a word; the saved state is that of step `at`."""
    saves = iter(range(100))
    save, after = run.RunInProgress._save, run.RunInProgress._after_step

    def after_step(self: run.RunInProgress, step: Step) -> None:
        after(self, step)
        if step.step == at + 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.RunInProgress, "_save", lambda self: save(self) if next(saves) < at else None)
        patch.setattr(run.RunInProgress, "_after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder, loggers=names, save_every=0)


@pytest.mark.parametrize("at", [5, 12, 18])
def test_a_resumed_run_has_each_epoch_once_everywhere(
    digits: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    names: tuple[LoggerName, ...] = ("csv", "wandb", "mlflow", "tensorboard")
    train_and_stop(config(digits), tmp_path / "run", at, names, monkeypatch)
    run.resume(tmp_path / "run", {}, Options(device="cpu", loggers=names))
    records = history(tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == ["7", "14", "21"]
    assert [step for step, _ in told(calls, "log")] == [7, 14, 21]
    assert [step for _, step, tag, _ in told(calls, "metric") if tag == "loss/train"] == [7, 14, 21]
    for record, (_, values) in zip(records, told(calls, "log"), strict=True):
        assert values["loss/train"] == record["loss"]
    first, second = told(calls, "init")
    assert first == second  # the same run of the service
    assert told(calls, "finish") == [[1], [0]]
    assert told(calls, "end") == [["abc", "KILLED"], ["abc", "FINISHED"]]
    assert len(told(calls, "create")) == 1


def test_services_get_settings_numbers_and_pictures(digits: Path, tmp_path: Path, calls: Path) -> None:
    settled = config(digits, epochs=2, sample_every=2)
    events = train(settled, tmp_path / "run", loggers=SERVICES)
    ((project, identifier, resume, name, folder, settings),) = told(calls, "init")
    assert (project, resume, name, folder) == ("genssl", "allow", "run", str(tmp_path / "run"))
    assert identifier
    assert settings == settled.model_dump()
    assert {key: value for _, key, value in told(calls, "param")} == {
        key: str(value) for key, value in settled.model_dump().items()
    }
    (first, one), (second, two) = told(calls, "log")
    assert (first, second) == (7, 14)
    last = history(tmp_path / "run")[-1]
    assert two["loss/train"] == last["loss"]
    assert two["loss/test"] == last["test_loss"]
    assert {"samples", "reconstructions"} <= set(two) - set(one)
    grid = [size for _, file, size in told(calls, "image") if file == "samples/step-00000014.png"]
    assert grid == [two["samples"]]
    assert {tag: value for _, step, tag, value in told(calls, "metric") if step == 14} == {
        tag: value for tag, value in two.items() if not isinstance(value, list)
    }
    ((uri,),) = told(calls, "client")
    assert uri == f"sqlite:///{(tmp_path / 'run' / 'mlflow' / 'mlflow.db').as_posix()}"
    assert {"wandb: https://wandb.example/run", f"mlflow: {uri}"} <= set(notes(events))


def test_the_variables_of_the_services_are_theirs(
    digits: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "course")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "homework")
    train(config(digits, epochs=1), tmp_path / "run", loggers=SERVICES)
    assert told(calls, "init")[0][0] == "course"
    assert told(calls, "client") == [["http://example.org:5000"]]
    assert told(calls, "experiment") == [["homework", None]]  # the server knows where files go
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@example.org:5000")
    events = train(config(digits, epochs=1), tmp_path / "other", loggers=("mlflow",))
    assert told(calls, "client")[-1] == ["http://me:secret@example.org:5000"]
    assert "mlflow: http://example.org:5000" in notes(events)
    assert not (tmp_path / "run" / "mlflow").exists()


def test_a_service_that_fails_does_not_end_the_training(
    digits: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "14")
    events = train(config(digits), tmp_path / "run", loggers=("wandb", "csv"))
    warnings = [note for note in notes(events) if note.startswith("warning")]
    assert warnings == ["warning: --logger wandb failed (network is gone); training goes on without it"]
    assert [step for step, _ in told(calls, "log")] == [7]
    assert [row["step"] for row in rows(tmp_path / "run")] == ["7", "14", "21"]
    train(config(digits), tmp_path / "without")
    same_weights(tmp_path / "run", tmp_path / "without")
    assert without_time(tmp_path / "run") == without_time(tmp_path / "without")


def test_a_service_that_refuses_is_said_before_the_first_step(
    digits: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "init")
    with pytest.raises(UserError, match=r"wandb did not start: No API key; .*WANDB_MODE=offline") as caught:
        train(config(digits), tmp_path / "run", loggers=("wandb",))
    assert caught.value.code == FAILED_RUN
    assert not (tmp_path / "run" / run_info.HISTORY).exists()


def test_where_one_service_refuses_those_before_it_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    class Fine:
        address = "here"

        def __init__(self, *_: object) -> None: ...

        def close(self, *, finished: bool) -> None:
            closed.append(finished)

    class Refusing(Fine):
        def __init__(self, *_: object) -> None:
            raise OSError("no")

    monkeypatch.setattr(loggers, "LOGGERS", {"wandb": Fine, "mlflow": Refusing})
    with pytest.raises(UserError, match="mlflow did not start: no"):
        loggers.Loggers(lambda _: None).start(("wandb", "mlflow"), tmp_path, [], config(tmp_path))
    assert closed == [False]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
@pytest.mark.parametrize("beside", [False, True], ids=["nothing", "a folder of its name"])
def test_without_the_package_it_is_said_before_any_work(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, beside: bool
) -> None:
    if beside:
        (tmp_path / name).mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        forget(name)
    else:
        monkeypatch.setitem(sys.modules, name, None)
    result = call("train", "vae", "--data", digits, "--out", tmp_path / "run", "--logger", name)
    monkeypatch.undo()
    importlib.invalidate_caches()
    assert result.exit_code == WRONG_INPUT
    assert f"--logger {name} needs a package that is not installed: pip install 'genssl[{name}]'" in " ".join(
        result.stderr.split()
    )
    assert not (tmp_path / "run").exists()


def test_names_of_loggers(digits: Path, tmp_path: Path) -> None:
    assert checked_loggers(["csv", "tensorboard", "csv"]) == ("csv", "tensorboard")
    result = call("train", "vae", "--data", digits, "--out", tmp_path / "run", "--logger", "tensorbord")
    assert result.exit_code == WRONG_INPUT
    assert "no logger 'tensorbord' (did you mean 'tensorboard'?)" in " ".join(result.stderr.split())
    options = Options(loggers=("csv", "wandb"))
    assert "--logger csv --logger wandb" in resume_hint(Path("run"), options)


@pytest.mark.slow
def test_one_process_of_two_logs(digits: Path, tmp_path: Path, calls: Path) -> None:
    command = [sys.executable, "-m", "genssl", "train", "vae", "--data", str(digits), "--epochs", "2"]
    command += ["--batch-size", "40", "--out", str(tmp_path / "run"), "--gpus", "2", "--device", "cpu"]
    command += ["--set", "width=4", "--set", "z_dim=3", "--logger", "wandb"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [(rank, name) for rank, name, *_ in lines] == [
        ("0", name) for name in ("init", "log", "log", "finish")
    ]


def chunks(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format in blocks of 32 KiB, after a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # too little for a header is left empty
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield whole
            whole = b""


def logged(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Steps and values in wandb's offline files, in the order of their writing."""
    protocol = importlib.import_module("wandb.proto.wandb_internal_pb2")
    rows = []
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for chunk in chunks(file.read_bytes()):
            record = protocol.Record()
            record.ParseFromString(chunk)
            items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows += [(int(items["_step"]), items)] if items else []
    return rows


@pytest.mark.slow
def test_weights_and_biases_offline(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_service("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train_and_stop(config(digits), tmp_path / "run", 12, ("wandb",), monkeypatch)
    run.resume(tmp_path / "run", {}, Options(device="cpu", loggers=("wandb",)))
    until = time.monotonic() + 60
    while len(logged(tmp_path / "run")) < 3 and time.monotonic() < until:
        time.sleep(0.2)  # a process of wandb's own writes the file, and may do so after `finish`
    found = logged(tmp_path / "run")
    assert [step for step, _ in found] == [7, 14, 21]
    for record, (_, values) in zip(history(tmp_path / "run"), found, strict=True):
        assert values["loss/train"] == pytest.approx(record["loss"])
    pictures = list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))
    assert len(pictures) == 2  # epochs 2 and 3


@pytest.mark.slow
def test_mlflow_in_the_run_folder(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = import_service("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settled = config(digits)
    train_and_stop(settled, tmp_path / "run", 12, ("mlflow",), monkeypatch)
    run.resume(tmp_path / "run", {}, Options(device="cpu", loggers=("mlflow",)))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("genssl")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["learning_rate"] == str(settled.learning_rate)
    losses = client.get_metric_history(found.info.run_id, "loss/train")
    records = history(tmp_path / "run")
    assert [(m.step, m.value) for m in losses] == [(r["step"], pytest.approx(r["loss"])) for r in records]
    assert [file.path for file in client.list_artifacts(found.info.run_id, "samples")] == [
        "samples/step-00000014.png", "samples/step-00000021.png",
    ]  # fmt: skip


def test_services_take_finite_numbers_alone() -> None:
    record = {
        "epoch": 1,
        "step": 7,
        "loss": 2.0,
        "collapsed": True,
        "none": None,
        "nan": float("nan"),
        "text": "x",
    }
    assert loggers.scalars(record) == {
        "progress/epoch": 1.0, "loss/train": 2.0, "collapse/collapsed": 1.0,
    }  # fmt: skip
