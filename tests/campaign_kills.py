"""Runs killed at random moments and begun again, counted.

    python -m tests.campaign_kills docs/results/kills.json --kills 200

Of each kind of work one command is carried out undisturbed. Then the same command is killed (SIGKILL) at
seeded moments, from its start on, and repeated, until it has ended by itself; what it leaves is compared with
what the undisturbed one left. The program can be stopped at any moment: the next one continues after the last
count.
"""

import argparse
import functools
import hashlib
import json
import os
import platform
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from safetensors.torch import load_file

from genssl import files
from genssl.files import TEMPORARY
from genssl.run_info import MODEL
from tests.conftest import write_digits

MARK = "GENSSL_KILLED"  # in the environment of all processes of a command
PATIENCE = 600.0  # seconds for a command
# Small networks, short trainings, few samples and pixels as features: what is tested is what is left behind.
# The assignment has the steps of a plan without a budget, in which nothing depends on the clock.
PROGRAM = """
from genssl.cli import main
from genssl.commands import study as commands
from genssl.eval import feature_cache, fidelity_features
from genssl.models import unet
from genssl.studies import assignment as plans, assignment_steps as steps, measures
fidelity_features.default_features = lambda device: feature_cache.PIXELS
unet.LAYOUTS["tiny"] = unet.Layout((16, 16, 16), (1, 1, 1), (False, False, False))
measures.SAMPLING_BUDGET, commands.default_samples = 1e-9, lambda device: 32
steps.LIKELIHOOD_IMAGES = steps.BOUND_IMAGES = steps.BOUND_TIMES = steps.SWEPT_IMAGES = 4
steps.COARSE, steps.LAST_COARSE_LEVEL = range(2, 11, 4), 14
SHARED = {"batch_size": 16, "epochs": 2, "seed": 0}
SETTINGS = {
    "vae": {"width": 8, "z_dim": 6, "mixture_components": 2},
    "ddpm": {"network": "tiny", "timesteps": 20, "features_t": 2},
    "simsiam": {"encoder": "small", "projector_dim": 16, "projector_hidden": 16, "predictor_hidden": 8},
}
def plan_of(asked, listen):
    methods = {name: name.replace("-timesteps", "").replace("-", "_") for name in plans.SHARES}
    parts = {
        name: steps.Part(method, asked.source(name), SHARED | SETTINGS.get(method, {}))
        for name, method in methods.items()
    }
    made = steps.steps_of(parts, device=asked.device, questions=asked.questions, full=False, samples=32)
    return plans.Plan(plans.TITLE, (), made)
plans.assignment = plan_of
"""
# It forks a process for each line that it reads, and says its number and how it ended. What a command imports
# first, which takes most of a tiny run's time, is there already: no kill is spent on it.
SERVER = f"""{PROGRAM}
import io, json, os, sys
import scipy.stats, sklearn.mixture, torch._dynamo
from genssl import figures
from genssl.commands import assignment, data, study, train
from genssl.studies import ablate, compare
from genssl.training import run
history = [{{"epoch": 1, "seconds": 1.0, "loss": 1.0}}]
for figure in (figures.curves(history, "a", {{}}), figures.wall_clock(history, "a")):
    figure.savefig(io.BytesIO())
print("ready", flush=True)
for line in sys.stdin:
    words, said, folder, environment = json.loads(line)
    number = os.fork()
    if number == 0:
        os.setsid()
        os.chdir(folder)
        for handle, path in ((0, os.devnull), (1, os.devnull), (2, said)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), handle)
        os.environ |= environment
        sys.argv = ["genssl", *words]
        main()
        sys.exit()
    print(number, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
"""
CLOCK = {"seconds", "images_per_second"}
VAE = ["--set", "width=8", "--set", "z_dim=6", "--set", "mixture_components=2"]
SSL = [
    "--set", "encoder=small", "--set", "projector_dim=16", "--set", "projector_hidden=16",
    "--set", "predictor_hidden=8", "--knn-every", "0", "--epochs", "3",
]  # fmt: skip
MOCO = [
    "--set", "encoder=small", "--set", "projector_dim=16", "--set", "projector_hidden=16",
    "--set", "queue_size=32", "--knn-every", "0", "--epochs", "3",
]  # fmt: skip
DDPM = ["--set", "network=tiny", "--timesteps", "20", "--set", "features_t=2", "--epochs", "3"]
KINDS = ("vae", "ddpm", "simsiam", "byol", "moco", "two processes", "conversion", "ablate", "assignment")


@dataclass(frozen=True)
class Work:
    """A command that may be repeated, and where it leaves what is compared.

    Attributes:
        kind: one of KINDS.
        folder: of its data.
        out: a folder that it makes.
    """

    kind: str
    folder: Path
    out: Path

    def words(self) -> list[str]:
        """The command line."""
        digits, out = str(self.folder / ("many" if self.kind == "conversion" else "digits")), str(self.out)
        shared = ["--data", digits, "--batch-size", "16", "--device", "cpu"]
        # A state now and then only: some kills come before the first one
        run = [*shared, "--precision", "fp32", "--sample-every", "1", "--save-every", "0.3", "--auto-resume"]
        run += ["--yes", "--out", out]
        commands = {
            "vae": ["train", "vae", *run, *VAE, "--epochs", "6"],
            "ddpm": ["train", "ddpm", *run, *DDPM],
            "simsiam": ["train", "simsiam", *run, *SSL],
            "byol": ["train", "byol", *run, *SSL],
            "moco": ["train", "moco", *run, *MOCO],
            "two processes": ["train", "vae", *run, *VAE, "--epochs", "6", "--gpus", "2"],
            "conversion": ["data", "fetch", digits, "--image-size", "32"],
            "ablate": ["ablate", "vae", *shared, "--set", "z_dim=3", "--set", "z_dim=5", "--base", "width=8",
                       "--base", "mixture_components=2", "--epochs", "2", "--yes", "--out", out],
            "assignment": ["assignment", "--out", out, "--data", digits, "--ssl-data", digits,
                           "--device", "cpu", "--only", "1.3,2.2,3.4"],
        }  # fmt: skip
        return commands[self.kind]

    def start(self) -> "Started":
        """The command, in a session of its own."""
        said = self.out.parent / "said.txt"
        said.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            MARK: str(self.out), "GENSSL_CHECKPOINTS": str(self.out / "checkpoints"),
            "GENSSL_CACHE": str(self.out if self.kind == "conversion" else self.folder / "cache"),
        }  # fmt: skip
        if self.kind != "two processes":  # torchrun starts its own from the beginning
            process = server()
            line = json.dumps([self.words(), str(said), str(self.folder), environment])
            _pipe(process.stdin).write(f"{line}\n".encode())
            _pipe(process.stdin).flush()
            return Started(int(_pipe(process.stdout).readline()), said, process)
        with said.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", f"{PROGRAM}\nmain()", *self.words()], cwd=self.folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, stdout=subprocess.DEVNULL,
                stderr=file, start_new_session=True,
            )  # fmt: skip
        return Started(process.pid, said, process)

    def whole(self) -> tuple[bool, str]:
        """Carry it out to its end; whether it ended well, and what it said."""
        process = self.start()
        code = process.wait(PATIENCE)
        assert code is not None, "it hangs"
        return code == 0, process.said.read_text(errors="replace")


@dataclass(frozen=True)
class Started:
    """A process of a work.

    Attributes:
        pid: its number.
        said: the file of what it says.
        parent: the server that has forked it, or itself.
    """

    pid: int
    said: Path
    parent: "subprocess.Popen[bytes]"

    def wait(self, seconds: float) -> int | None:
        """The exit code; None where it is alive after so many seconds."""
        if self.parent.pid == self.pid:
            try:
                return self.parent.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
        answers = _pipe(self.parent.stdout)
        return int(answers.readline()) if select.select([answers], [], [], seconds)[0] else None

    def alive(self) -> list[psutil.Process]:
        """Its process and those that it has started: of its session, or with the mark of its work."""
        mark, alive = str(self.said.with_name("out")), []
        for process in psutil.process_iter():
            try:
                mine = os.getsid(process.pid) == self.pid or process.environ().get(MARK) == mark
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return alive


@functools.cache
def server() -> "subprocess.Popen[bytes]":
    """What starts the commands; it ends with this process."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, bufsize=0,  # so that `select` sees every line
    )  # fmt: skip
    assert _pipe(process.stdout).readline() == b"ready\n"
    return process


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def weights_of(folder: Path) -> dict[str, str]:
    """A digest of each file of weights or pixels, by its name in the folder."""
    digests = {}
    for file in sorted([*folder.rglob(MODEL), *folder.rglob("*.npy")]):
        if file.name == MODEL:
            tensors = load_file(file)
            content = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
        else:
            content = file.read_bytes()
        digests[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return digests


def orphans_in(folder: Path) -> list[str]:
    """Temporary files and locks that nobody removes any more."""
    return [
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if TEMPORARY.fullmatch(file.name) or file.name.endswith((".tmp", ".lock", ".journal", ".part"))
    ]


def names_in(folder: Path) -> set[str]:
    """The names of all files."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


def kill(work: Work, chance: random.Random, seconds: float) -> tuple[bool, int]:
    """Start the work and kill it, unless it ends before.

    Returns:
        Whether it was killed, and how many of its processes were alive after a while, which are killed then.

    Of two processes it is all of them, the launcher alone, or one of those that train.
    """
    process = work.start()
    if process.wait(chance.uniform(0.02, 0.95) * seconds) is not None:
        return False, _until_alone(process)
    several = work.kind == "two processes"
    targets = [entry for entry in process.alive() if entry.pid != process.pid] if several else []
    match chance.randrange(3) if several else 0:
        case 1:
            os.kill(process.pid, signal.SIGKILL)
        case 2 if targets:
            chance.choice(targets).kill()
        case _:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(PATIENCE) is not None, "it hangs"
    return True, _until_alone(process)


def _until_alone(process: Started, seconds: float = 120.0) -> int:
    end = time.monotonic() + seconds
    while (left := process.alive()) and time.monotonic() < end:
        time.sleep(0.2)
    for entry in left:
        entry.kill()
    return len(left)


def new_record(seed: int) -> dict[str, Any]:
    """Counts of nothing yet."""
    names = ("kills", "ended", "equal_weights", "same_files", "orphans", "processes_left", "lost_runs")
    device = f"{platform.system()} {platform.machine()}, CPU, Python {platform.python_version()}"
    return {"seed": seed, "device": device, "kinds": {kind: dict.fromkeys(names, 0) for kind in KINDS},
            "failures": []}  # fmt: skip


def outcome_of(folder: Path) -> dict[str, Any]:
    """What a command has left: the weights, the histories without their times, and all files' names."""
    names = sorted(names_in(folder))
    return {"weights": weights_of(folder), "histories": histories_of(folder), "names": names}


def histories_of(folder: Path) -> list[list[dict[str, Any]]]:
    """The records of every run, without what the clock says."""
    return [
        [
            {name: value for name, value in json.loads(line).items() if name not in CLOCK}
            for line in file.read_text().splitlines()
        ]
        for file in sorted(folder.rglob("history.jsonl"))
    ]


def cycle(
    undisturbed: dict[str, Any], work: Work, chance: random.Random, whole: float, most: int
) -> tuple[dict[str, int], str]:
    """Kill the work one to `most` times, carry it out to its end, compare; counts, and what went wrong.

    `undisturbed` is the outcome of the same work that nobody has killed.
    """
    shutil.rmtree(work.out, ignore_errors=True)
    counts = dict.fromkeys(new_record(0)["kinds"]["vae"], 0)
    for _ in range(chance.randint(1, most)):
        was_killed, left_alive = kill(work, chance, whole)
        counts["kills"] += was_killed
        counts["processes_left"] += left_alive
    went_well, said = work.whole()
    counts["ended"], counts["lost_runs"] = 1, int(not went_well)
    if not went_well:
        return counts, said[-600:]
    outcome = outcome_of(work.out)
    counts["equal_weights"] = int(
        all(outcome[name] == undisturbed[name] for name in ("weights", "histories"))
    )
    left = orphans_in(work.out)
    counts["orphans"] = len(left)
    differing = set(outcome["names"]) ^ set(undisturbed["names"])
    counts["same_files"] = int(not differing)
    odd = [*left, *sorted(differing)[:6]]
    return counts, f"{odd}" if odd or not counts["equal_weights"] else ""


def work_of(kind: str, folder: Path, name: str) -> Work:
    """A work of a kind in the campaign's folder."""
    return Work(kind, folder, folder / f"{kind.replace(' ', '-')}-{name}" / "out")


def whole_of(kind: str, folder: Path) -> tuple[dict[str, Any], float]:
    """The outcome of an undisturbed work and its seconds, from the folder if it was carried out before."""
    file = folder / f"{kind.replace(' ', '-')}.json"
    if not file.exists():
        server()  # its imports do not count
        work, began = work_of(kind, folder, "undisturbed"), time.monotonic()
        went_well, said = work.whole()
        assert went_well, said
        files.write_json(file, {"seconds": time.monotonic() - began, **outcome_of(work.out)})
    record = json.loads(file.read_text())
    return record, record["seconds"]


def run(
    out: Path, kills: int, seed: int, seconds: float, folder: Path, kinds: tuple[str, ...] = KINDS
) -> dict[str, Any]:
    """Carry out what is left of `kills` kills, as far as there is time; returns and writes the counts.

    The kind with the fewest kills is next. `folder` is for data and works; it may be used again.
    """
    record = json.loads(out.read_text()) if out.exists() else new_record(seed)
    assert record["seed"] == seed, "the counts are of another seed"
    until, share = time.monotonic() + seconds, -(-kills // len(kinds))
    for name, train, test in (("digits", 120, 40), ("many", 3000, 100)):
        if not (folder / name).exists() and (name == "digits" or "conversion" in kinds):
            write_digits(folder / name, train, test)
    while time.monotonic() < until:
        kind = min(kinds, key=lambda kind: record["kinds"][kind]["kills"])
        total = record["kinds"][kind]
        if total["kills"] >= share:
            break
        undisturbed, whole = whole_of(kind, folder)
        chance = random.Random(f"{seed} {kind} {total['ended']}")
        work = work_of(kind, folder, "killed")
        counts, problem = cycle(undisturbed, work, chance, whole, min(6, share - total["kills"]))
        for key, count in counts.items():
            total[key] += count
        if problem:
            record["failures"].append({"kind": kind, "cycle": total["ended"] - 1, "said": problem})
        files.write_json(out, record)
        print(kind, total, problem, flush=True)
    return dict(record)


def is_sound(record: dict[str, Any]) -> bool:
    """Whether every run came to its end as if nothing had been."""
    return all(
        total["ended"] == total["equal_weights"] == total["same_files"]
        and total["orphans"] == total["processes_left"] == total["lost_runs"] == 0
        for total in record["kinds"].values()
    )


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=1e9, help="Begin nothing after so many.")
    parser.add_argument("--kind", choices=KINDS, action="append", help="These alone.")
    parser.add_argument("--folder", type=Path, help="Of data and works, kept; default: a temporary one.")
    asked = parser.parse_args()
    kinds = tuple(asked.kind or KINDS)
    with tempfile.TemporaryDirectory(prefix="genssl-kills-", ignore_cleanup_errors=True) as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sys.exit(not is_sound(run(asked.out, asked.kills, asked.seed, asked.seconds, folder, kinds)))


if __name__ == "__main__":
    main()
