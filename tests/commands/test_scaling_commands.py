"""From one process to many, from resident to streamed: what a person types, and what is said."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genssl import cli, distributed, run_info
from genssl import config as configs
from genssl.data import loader
from genssl.environment import launched_rank
from genssl.errors import FAILED_RUN, INTERRUPTED, LOST_PROCESS, WRONG_INPUT, Echo, UserError
from genssl.runtime import choose_device
from genssl.training import ddp

from ..conftest import SMALL, call

SHORT = ["--epochs", 2, "--batch-size", 16, "--device", "cpu", *SMALL]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / run_info.MODEL)


def test_a_streamed_run_ends_with_the_weights_of_a_resident_one(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[bool] = []
    batches = loader.Loader.batches

    def counted(self: loader.Loader, *arguments: Any) -> Any:
        streams.append(self.stream)
        return batches(self, *arguments)

    monkeypatch.setattr(loader.Loader, "batches", counted)
    for name, limit in (("streamed", 0), ("resident", 1)):
        result = call(
            "train", "vae", "--data", digits, *SHORT, "--out", tmp_path / name, "--resident-limit", limit
        )
        assert result.exit_code == 0, result.output
    assert streams == [True, True, False, False]  # once an epoch
    streamed, resident = weights(tmp_path / "streamed"), weights(tmp_path / "resident")
    assert streamed.keys() == resident.keys()
    assert all(torch.equal(streamed[name], resident[name]) for name in resident)
    assert resident["mixture_weights"].sum() > 0  # fitted to a split that was never on the device, too


def test_going_on(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "vae", "--data", digits, *SHORT, "--out", out, "--auto-resume"]
    begun = call(*command, "--max-minutes", 0)
    assert begun.exit_code == 0, begun.output
    assert run_info.inspect(out).epoch == 0
    ended = call(*command)
    assert ended.exit_code == 0, ended.output
    assert "resumed at step 1" in ended.output
    again = call(*command)
    assert again.exit_code == 0, again.output
    assert "nothing is left to do" in again.output
    whole = call("train", "vae", "--data", digits, *SHORT, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    one, two = weights(out), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], two[name]) for name in two)
    other = call(*command, "--seed", 5)
    assert other.exit_code == WRONG_INPUT
    assert "seed was 0, now 5" in other.output


def test_going_on_without_a_folder_finds_the_run_of_the_same_settings(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    command = ["train", "vae", "--data", digits, *SHORT, "--max-minutes", 0, "--auto-resume"]
    for seed in (0, 1, 0):
        assert call(*command, "--seed", seed).exit_code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["vae-digits", "vae-digits-2"]
    steps = [json.loads((tmp_path / name / "history.jsonl").read_text().splitlines()[-1])["step"]
             for name in ("vae-digits", "vae-digits-2")]  # fmt: skip
    assert steps == [2, 1]


def test_going_on_takes_the_newest_of_several(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    command = ["train", "vae", "--data", digits, *SHORT, "--max-minutes", 0]
    for _ in range(3):
        assert call(*command).exit_code == 0
    for age, name in enumerate(("vae-digits-2", "vae-digits-3", "vae-digits")):
        os.utime(tmp_path / name / "config.json", (1e9 - age, 1e9 - age))
    result = call(*command, "--auto-resume")
    assert result.exit_code == 0, result.output
    assert f"run folder: {tmp_path / 'vae-digits-2'}\n" in result.output


@pytest.mark.parametrize("named", [True, False], ids=["--out", "by its settings"])
def test_a_restart_goes_on_with_what_was_begun_before_it(
    named: bool, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    command = ["train", "vae", "--data", digits, *SHORT, "--max-minutes", 0]
    command += ["--out", tmp_path / "run"] if named else []
    assert call(*command).exit_code == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert "resumed at step 1" in result.output
    assert len(list(tmp_path.glob("*/config.json"))) == 1
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    again = call(*command)  # a run of its own, which needs a folder of its own
    assert again.exit_code == (WRONG_INPUT if named else 0)
    assert len(list(tmp_path.glob("*/config.json"))) == 2 - named


def test_a_remix_is_said_everywhere(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    result = call("train", "vae", "--data", digits, "--remix", *SHORT, "--max-minutes", 0)
    assert result.exit_code == 0, result.output
    run = tmp_path / "vae-digits-remix"
    assert configs.read((run / "config.json").read_text(), "").data == f"{digits}-remix"
    assert "on digits-remix (120 images)" in result.output
    measured = call("reconstruct", run)
    assert measured.exit_code == 0, measured.output
    assert json.loads((run / "eval" / "reconstruct.json").read_text())["data"] == "digits-remix"
    refused = call("train", "--resume", run, "--remix")
    assert refused.exit_code == WRONG_INPUT
    assert "--remix" in refused.output


def test_tensorboard(digits: Path, tmp_path: Path) -> None:
    result = call("train", "vae", "--data", digits, *SHORT, "--out", tmp_path / "run", "--tensorboard")
    assert result.exit_code == 0, result.output
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    found = events.Scalars("loss/train")
    assert [event.step for event in found] == [record["step"] for record in history]
    assert [event.value for event in found] == pytest.approx([record["loss"] for record in history])
    assert {"samples", "reconstructions"} <= set(events.Tags()["images"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_several_gpus_where_there_are_none(digits: Path) -> None:
    result = call("train", "vae", "--data", digits, "--gpus", 2)
    assert result.exit_code == WRONG_INPUT
    assert "--device cpu runs --gpus 2 on the CPU" in result.output


@pytest.mark.parametrize(("device", "there", "wanted"), [("cuda", 1, 2), ("cuda:0", 4, 2)])
def test_more_processes_than_gpus(
    device: str, there: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ddp, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(UserError, match=f"--gpus {wanted} takes GPUs 0 to 1, and this machine has {there}"):
        ddp._check_devices(wanted, device)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert str(choose_device("cuda")) == str(choose_device("auto")) == "cuda"
    assert current == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(choose_device("cuda")) == str(choose_device("auto")) == "cuda:1"
    assert str(choose_device("cuda:0")) == "cuda:0"
    assert [device.index for device in current] == [1, 1, 0]
    assert str(choose_device("cpu")) == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"3 processes .* use --device cuda"):
        choose_device("cuda:0")
    for rank in ("0", "2"):  # all of them say so: none is to wait for another
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(UserError, match="3 processes were started for 2 GPUs"):
            choose_device("cuda")


def test_what_exit_codes_mean() -> None:
    killed = ddp._launch_error({0: -15, 1: -9, 2: LOST_PROCESS}, 3, ["train", "vae"])
    again = "the same command with --auto-resume continues the run"
    assert str(killed) == f"process 1 of 3 was killed (SIGKILL); {again}"
    assert killed.code == FAILED_RUN
    killed = ddp._launch_error({0: -15}, 2, ["train", "--resume", "x"])
    assert str(killed) == "process 0 of 2 was killed (SIGTERM); the same command continues the run"
    lost = ddp._launch_error({0: LOST_PROCESS, 1: LOST_PROCESS}, 2, ["train", "vae"])
    assert str(lost) == f"a process ended; {again}"


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ({0: 2, 1: -15}, 2),  # ended by torchrun after the first one had spoken
        ({0: -9, 1: 1}, 1),  # stuck in a message to one that had failed
        ({0: 130, 1: LOST_PROCESS}, 130),
        ({0: LOST_PROCESS, 1: 1, 2: -15}, 1),
    ],
)
def test_what_a_process_has_said_is_not_said_again(codes: dict[int, int], code: int) -> None:
    error = ddp._launch_error(codes, len(codes), ["train"])
    assert isinstance(error, Echo)
    assert error.code == code


def test_torchrun_is_told_how_often_to_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import run as torchrun

    launched: list[Any] = []

    def record(arguments: Any) -> None:
        launched.append((arguments, os.environ[distributed.LAUNCHER]))

    monkeypatch.setattr(torchrun, "run", record)
    ddp.launch(["train", "vae", "--max-restarts", "7"], 2, "cpu", 3)
    ((arguments, _),) = launched
    assert (arguments.max_restarts, arguments.nproc_per_node) == (3, "2")
    assert arguments.training_script == "genssl"
    assert arguments.training_script_args == ["train", "vae", "--max-restarts", "7"]
    assert distributed.LAUNCHER not in os.environ


def test_a_dry_run_is_of_one_process(digits: Path) -> None:
    result = call("train", "vae", "--data", digits, "--gpus", 2, "--device", "cpu", "--dry-run")
    assert result.exit_code == WRONG_INPUT
    assert "omit --gpus" in result.output


@pytest.mark.parametrize(
    ("rank", "local", "code", "said"),
    [
        (0, 0, WRONG_INPUT, "genssl: so\n"),
        (1, 1, WRONG_INPUT, ""),
        (8, 0, WRONG_INPUT, "genssl: process 8: so\n"),
        (1, 1, FAILED_RUN, "genssl: process 1: so\n"),
        (1, 1, INTERRUPTED, ""),
    ],
)
def test_one_process_speaks(
    rank: int, local: int, code: int, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", str(local))
    assert cli._tell("so", code) == code
    assert capsys.readouterr().err == said


def test_a_rank_without_a_world_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert launched_rank() == 0
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched_rank() == 3


def test_a_launcher_that_is_killed_before_its_processes_have_met_ends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, signals = threading.Event(), []

    def note(number: int, sent: int) -> None:
        signals.append((number, sent))
        ended.set()

    def meet(device: torch.device) -> bool:
        assert ended.wait(20), "it waits for ever"
        return False

    monkeypatch.setattr(os, "kill", note)
    monkeypatch.setattr(distributed, "init", meet)
    monkeypatch.setenv(distributed.LAUNCHER, str(os.getppid() + 1))  # not the parent any more
    with distributed.process_group(torch.device("cpu")):
        pass
    assert signals == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize(
    ("text", "launched", "leads", "kind", "device", "leaves"),
    [
        ("[gloo/transport/tcp] Connection closed by peer", False, True, UserError, "cpu", True),
        ("[gloo/transport/tcp] Connection closed by peer", True, True, Echo, "cpu", True),
        # Leaving would wait for messages that never come, or for processes that wait for this one
        ("ncclRemoteError: a remote process exited or ...", False, False, Echo, "cuda", False),
        ("[gloo] no memory for a buffer", False, True, RuntimeError, "cpu", True),
        ("out of memory", False, True, RuntimeError, "cuda", False),
    ],
)  # fmt: skip
def test_losing_another_process(
    text: str,
    launched: bool,
    leads: bool,
    kind: type[Exception],
    device: str,
    leaves: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[int] = []
    monkeypatch.setattr(distributed, "init", lambda device: True)
    monkeypatch.setattr(distributed, "shutdown", lambda: left.append(1))
    monkeypatch.setattr(distributed, "launched_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "is_main_process", lambda: leads)
    if launched:
        monkeypatch.setenv(distributed.LAUNCHER, "note")
    with pytest.raises(kind) as caught, distributed.process_group(torch.device(device)):
        raise RuntimeError(text)
    assert type(caught.value) is kind
    assert left == [1] * leaves
    if isinstance(caught.value, UserError):
        assert caught.value.code == LOST_PROCESS
