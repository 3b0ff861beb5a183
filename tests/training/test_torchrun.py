"""Real processes, started and killed: by torchrun itself, and by `genssl train --gpus`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genssl import run_info

RUN = [
    "train", "vae", "--epochs", "12", "--batch-size", "8", "--limit", "48", "--image-size", "16",
    "--set", "width=8", "--set", "z_dim=6", "--set", "mixture_components=2", "--sample-every", "0",
    "--precision", "fp32", "--device", "cpu", "--save-every", "0",
]  # fmt: skip
STEPS = 72
PATIENCE = 240  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]


class Running:
    """A command in a session of its own, and the training processes that it started."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.errors = folder / "stderr.txt"
        self.mark = f"{folder.name}-{time.monotonic_ns()}"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TEST_MARK": self.mark}
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                words, stdout=errors, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def ranks(self) -> dict[int, int]:
        """Process numbers by rank."""
        found = {}
        for place in Path("/proc").glob("[0-9]*/environ"):
            try:
                content = place.read_bytes().split(b"\0")
            except OSError:
                continue
            rank = [word for word in content if word.startswith(b"RANK=")]
            if rank and f"TEST_MARK={self.mark}".encode() in content:
                found[int(rank[0][5:])] = int(place.parent.name)
        return found

    def wait_for(self, run: Path, step: int) -> None:
        """Until the run has saved `step` or a later one."""
        end = time.monotonic() + PATIENCE
        while saved(run) < step:
            assert time.monotonic() < end, self.errors.read_text()
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.005)

    def kill(self, *ranks: int, run: Path, step: int) -> None:
        """Kill some of the two processes as soon as the run has saved `step` or a later one."""
        end = time.monotonic() + PATIENCE
        while len(found := self.ranks()) < 2:
            assert time.monotonic() < end, self.errors.read_text()
            time.sleep(0.1)
        self.wait_for(run, step)
        for rank in ranks:
            os.kill(found[rank], signal.SIGKILL)

    def end(self) -> int:
        return self.process.wait(PATIENCE)


def saved(run: Path) -> int:
    """The last saved step; -1 before the first. Reads no more than the header, to be quick."""
    if not (run / run_info.STATE).exists():
        return -1
    with (run / run_info.STATE).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return int(header["__metadata__"]["step"])


def genssl(*words: object) -> list[str]:
    return [sys.executable, "-m", "genssl", *map(str, words)]


def torchrun(*words: object) -> list[str]:
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "genssl"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *map(str, words)]


def same(one: Path, two: Path) -> bool:
    first, second = (load_file(run / run_info.MODEL) for run in (one, two))
    assert all(run_info.inspect(run).finished for run in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    running = Running(genssl(*RUN, "--data", digits, "--out", run, "--gpus", 2), run.parent)
    assert running.end() == 0, running.errors.read_text()
    return run


def test_a_killed_process_ends_the_run_with_one_line(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = Running(genssl(*RUN, "--data", digits, "--out", run, "--gpus", 2), tmp_path)
    running.kill(1, run=run, step=4)
    assert running.end() == 1
    lines = [line for line in running.errors.read_text().splitlines() if line.startswith("genssl: ")]
    assert lines == [
        "genssl: process 1 of 2 was killed (SIGKILL); the same command with --auto-resume continues the run"
    ]
    assert "Traceback" not in running.errors.read_text()
    assert 4 <= saved(run) < STEPS
    resume = ["train", "--resume", run, "--gpus", 2, "--device", "cpu", "--save-every", 0]
    again = Running(genssl(*resume), tmp_path)
    again.kill(0, 1, run=run, step=saved(run) + 1)
    assert again.end() == 1
    assert saved(run) < STEPS
    last = Running(genssl(*resume), tmp_path)
    assert last.end() == 0, last.errors.read_text()
    assert same(undisturbed, run)


def test_a_killed_launcher_takes_its_processes_along(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = Running(genssl(*RUN, "--data", digits, "--out", run, "--gpus", 2), tmp_path)
    running.wait_for(run, 4)
    running.process.kill()
    running.end()
    end = time.monotonic() + PATIENCE
    while running.ranks():
        assert time.monotonic() < end, "they train on"
        time.sleep(0.1)
    assert 4 <= saved(run) < STEPS
    resume = ["train", "--resume", run, "--gpus", 2, "--device", "cpu"]
    again = Running(genssl(*resume), tmp_path)  # the lock is free
    assert again.end() == 0, again.errors.read_text()
    assert same(undisturbed, run)


def test_an_interrupt_is_said_once_and_no_temporary_folder_is_left(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    running = Running(genssl(*RUN, "--data", digits, "--out", run, "--gpus", 2), tmp_path)
    running.wait_for(run, 4)
    assert list(temporary.glob("genssl-*"))
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does
    assert running.end() == 130, running.errors.read_text()
    lines = [line for line in running.errors.read_text().splitlines() if line.startswith("genssl: ")]
    assert len(lines) == 1, lines
    assert "stopped and saved at step" in lines[0]
    # torch's compiler has one folder per user there
    assert [file.name for file in temporary.iterdir() if not file.name.startswith("torchinductor_")] == []


def test_torchrun_starts_it_again(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = Running(torchrun(*RUN, "--data", digits, "--out", run), tmp_path)
    running.kill(1, run=run, step=4)
    assert running.end() == 0, running.errors.read_text()
    assert "resumed at step" in running.errors.read_text()
    assert same(undisturbed, run)


def test_a_terminate_signal_saves_and_another_number_of_processes_continues(
    digits: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    running = Running(genssl(*RUN, "--data", digits, "--out", run, "--gpus", 2), tmp_path)
    running.wait_for(run, 4)
    running.process.terminate()
    assert running.end() == 143
    lines = [line for line in running.errors.read_text().splitlines() if line.startswith("genssl: ")]
    assert len(lines) == 1
    assert "stopped and saved at step" in lines[0]
    alone = Running(genssl("train", "--resume", run, "--device", "cpu"), tmp_path)
    assert alone.end() == 0, alone.errors.read_text()
    first, second = (load_file(each / run_info.MODEL) for each in (undisturbed, run))
    assert all(torch.allclose(first[name], second[name], atol=1e-3) for name in first)


def test_neighbors_are_found_by_two_processes(digits: Path, tmp_path: Path) -> None:
    words = ["knn-eval", "simsiam", "--data", digits, "-k", 7, "--device", "cpu"]
    found = []
    for start in (genssl, torchrun):
        running = Running(start(*words, "--out", tmp_path / f"{start.__name__}.png", "--json"), tmp_path)
        assert running.end() == 0, running.errors.read_text()
        text = running.errors.read_text()
        assert text.count("using ") == 1
        # What goes to stderr stands before it
        found.append(json.loads(text[text.index("{\n") :]))
        del found[-1]["command"]
    assert found[0] == found[1]
    assert found[0]["train_images"] == 120


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--batch-size", 9], 2, "no equal shares for 2 processes"),
        (["--data", "nowhere"], 2, "is no known data set"),
        (["--out", "taken"], 2, "choose another --out"),
        (["--set", "learning_rate=1e30", "--set", "gradient_clip=none"], 1, "not finite"),
    ],
)
def test_what_goes_wrong_is_said_once(
    words: list[object], code: int, said: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken" / "something").mkdir(parents=True)
    running = Running(genssl(*RUN, "--data", digits, "--out", "run", *words, "--gpus", 2), tmp_path)
    assert running.end() == code, running.errors.read_text()
    lines = [line for line in running.errors.read_text().splitlines() if line.startswith("genssl: ")]
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_a_run_with_everything_in_two_processes(digits: Path, tmp_path: Path) -> None:
    """Neighbors every epoch, a limit on time, going on when it is complete, and a state that is damaged."""
    run = tmp_path / "run"
    words = [
        "train", "simsiam", "--data", digits, "--out", run, "--epochs", 2, "--batch-size", 32,
        "--set", "encoder=small", "--set", "projector_hidden=16", "--set", "projector_dim=16",
        "--knn-every", 1, "--gpus", 2, "--device", "cpu", "--auto-resume",
    ]  # fmt: skip
    for more, done in ((["--max-minutes", 0], 1), ([], 6), ([], 6)):
        running = Running(genssl(*words, *more), tmp_path)
        assert running.end() == 0, running.errors.read_text()
        assert saved(run) == done
    assert running.errors.read_text().count("nothing is left to do") == 1
    history = [json.loads(line) for line in (run / run_info.HISTORY).read_text().splitlines()]
    assert [record["step"] for record in history] == [3, 6]
    assert all("knn_accuracy" in record for record in history)
    (run / run_info.MODEL).unlink()
    (run / run_info.STATE).write_bytes((run / run_info.STATE).read_bytes()[:-10])
    running = Running(genssl("train", "--resume", run, "--gpus", 2, "--device", "cpu"), tmp_path)
    assert running.end() == 1
    lines = [line for line in running.errors.read_text().splitlines() if line.startswith("genssl: ")]
    assert len(lines) == 1, lines
    assert "damaged" in lines[0]
