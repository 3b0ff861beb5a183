"""A million images: conversion and training watched from outside, memory and speed.

    python -m benchmarks.million_archive /tmp/million.tar
    python -m benchmarks.million /tmp/million.tar docs/results

The archive is converted (killed once on the way), then a VAE trains on it: streamed for a whole epoch, then
streamed, resident (memory-mapped, as by default on a CPU) and copied into memory, in turns. Every process is
a new one. With --memory-limit GIB (Linux, control groups of the first version, as root) an extra run, with
the file cache emptied before, shows that streaming gets by with less memory than the images take.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MIB = 2**20
EVERY = 1.0  # seconds between two looks at a process
ROUNDS = 3
KILLED_AT = 0.4  # of the images
WINDOW = 10.0  # seconds over which the drawn speed is a mean
BATCH = 64
GROUPS = Path("/sys/fs/cgroup/memory")
KINDS = ("streamed", "resident", "in memory")
CONVERT = """
from genssl.data.load import load
import sys
split = load(sys.argv[1], "train")
print(len(split), split.images.shape)
"""
TRAIN = """
import dataclasses, json, sys, time
from pathlib import Path
from genssl import config
from genssl.data import feed
from genssl.train import events, run
from genssl.train.options import Options
path, kind, minutes, out = sys.argv[1:]
if kind == "in memory":
    place = run.place
    def copied(split, device, limit):
        return place(dataclasses.replace(split, images=split.images.clone()), device, limit)
    run.place = copied
def listen(event):
    if isinstance(event, events.Progress):
        print(json.dumps([time.time(), event.step, event.images_per_second]), flush=True)
settings = config.make("vae", {"data": path, "epochs": 1, "sample_every": 0, "mixture_components": 0})
limit = {"streamed": 0.0, "resident": 1e6, "in memory": 1e6}[kind]
how = Options(device="cpu", max_minutes=float(minutes), resident_limit=limit, out=Path(out))
run.start(settings, how, listen)
"""


def memory(process: int) -> dict[str, int]:
    """MiB that are the process's own, and MiB of files that it has mapped."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split(":")[1] for line in lines}
    return {name: int(fields[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile")}


def looks(process: subprocess.Popen[str]) -> Iterator[tuple[float, dict[str, int]]]:
    """Seconds since now and memory, until the process ends."""
    start = time.time()
    while process.poll() is None:
        try:
            yield time.time() - start, memory(process.pid)
        except (FileNotFoundError, KeyError):
            return
        time.sleep(EVERY)


def begin(code: str, *words: object, group: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if group is not None:
        (group / "cgroup.procs").write_text(str(process.pid))
    return process


def journal_images() -> int:
    """Images converted so far, by the size of the journal's pixels."""
    cache = Path(os.environ["GENSSL_CACHE"])
    return max((file.stat().st_size for file in cache.glob("*.pixels")), default=0) // 3072


def convert(path: Path, count: int) -> dict[str, Any]:
    """Memory and progress of the conversion, killed once."""
    curve: list[list[float]] = []
    start, killed = time.time(), None
    while True:
        process = begin(CONVERT, path)
        for _, used in looks(process):
            done = journal_images()
            curve.append([round(time.time() - start, 1), done, used["RssAnon"], used["RssFile"]])
            if killed is None and done >= KILLED_AT * count:
                process.send_signal(signal.SIGKILL)
                killed = curve[-1]
        out, errors = process.communicate()
        if process.returncode == 0:
            return {"seconds": time.time() - start, "killed": killed, "curve": curve, "said": out.strip()}
        assert process.returncode == -signal.SIGKILL, errors


def train(path: Path, kind: str, minutes: float, out: Path, group: Path | None = None) -> dict[str, Any]:
    """Speed and memory of one training."""
    process = begin(TRAIN, path, kind, minutes, out, group=group)
    start = time.time()
    curve = [[round(seconds, 1), used["RssAnon"], used["RssFile"]] for seconds, used in looks(process)]
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    told = [json.loads(line) for line in printed.splitlines()]
    speed = [[round(when - start, 1), step, round(rate)] for when, step, rate in told]
    return {"kind": kind, "images_per_second": speed[-1][2], "memory": curve, "speed": speed}


def limited_group(gib: float) -> Path:
    group = GROUPS / "genssl-million"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(int(gib * 2**30)))
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    return group


def momentary(told: list[list[float]]) -> list[tuple[float, float]]:
    """(images seen, images a second over the last WINDOW seconds) from (seconds, step, mean so far)."""
    found, before = [], told[0]
    for row in told:
        if row[0] - before[0] >= WINDOW:
            found.append((row[1] * BATCH, (row[1] - before[1]) * BATCH / (row[0] - before[0])))
            before = row
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    curve = found["conversion"]["curve"]
    axes[0].plot([row[0] for row in curve], [row[2] for row in curve], label="own memory")
    axes[0].plot(
        [row[0] for row in curve], [row[1] * 3072 / MIB for row in curve], "--", label="converted pixels"
    )
    axes[0].axvline(found["conversion"]["killed"][0], color="gray", linewidth=0.8, label="killed")
    axes[0].set(title="conversion", xlabel="seconds", ylabel="MiB")
    runs = [
        found["epoch"],
        *({run["kind"]: run for run in reversed(found["runs"]) if run["kind"] != "streamed"}).values(),
    ]
    for run in runs:
        (line,) = axes[1].plot(
            *zip(*[row[:2] for row in run["memory"]], strict=True), label=f"{run['kind']}: own memory"
        )
        axes[1].plot(
            *zip(*[(a, c) for a, _, c in run["memory"]], strict=True),
            "--",
            color=line.get_color(),
            label=f"{run['kind']}: mapped file",
        )
        axes[2].plot(*zip(*momentary(run["speed"]), strict=True), label=run["kind"])
    axes[1].set(title="training: host memory", xlabel="seconds", ylabel="MiB")
    axes[2].set(title="training: speed", xlabel="images seen", ylabel="images / s", ylim=(0, None))
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=1_010_000)
    parser.add_argument("--minutes", type=float, default=1.0, help="of each run that is compared")
    parser.add_argument("--epoch-minutes", type=float, default=15.0, help="at most, of the whole epoch")
    parser.add_argument("--memory-limit", type=float, help="GiB of an extra run")
    asked = parser.parse_args()
    work = asked.archive.parent / "million"
    work.mkdir(exist_ok=True)
    os.environ["GENSSL_CACHE"] = str(work / "cache")
    found: dict[str, Any] = {"cpu_threads": os.environ.get("OMP_NUM_THREADS", "all"), "batch_size": BATCH}
    found["conversion"] = convert(asked.archive, asked.count)
    print(f"converted in {found['conversion']['seconds']:.0f} s, {found['conversion']['said']}", flush=True)
    stamp = int(time.time())
    found["epoch"] = train(asked.archive, "streamed", asked.epoch_minutes, work / f"epoch-{stamp}")
    print(f"an epoch, streamed: {found['epoch']['images_per_second']:,} images/s", flush=True)
    found["runs"] = []
    for number in range(ROUNDS):
        for kind in KINDS:
            run = train(
                asked.archive, kind, asked.minutes, work / f"{kind.replace(' ', '-')}-{number}-{stamp}"
            )
            found["runs"].append(run)
            print(f"{kind}: {run['images_per_second']:,} images/s", flush=True)
    if asked.memory_limit:
        group = limited_group(asked.memory_limit)
        found["limited"] = train(asked.archive, "streamed", asked.minutes, work / f"limited-{stamp}", group)
        found["limited"]["limit_gib"] = asked.memory_limit
        print(
            f"under {asked.memory_limit} GiB: {found['limited']['images_per_second']:,} images/s", flush=True
        )
    speeds = {
        kind: [run["images_per_second"] for run in found["runs"] if run["kind"] == kind] for kind in KINDS
    }
    found["median"] = {kind: statistics.median(each) for kind, each in speeds.items()}
    ratios = [a / b for a, b in zip(speeds["streamed"], speeds["resident"], strict=True)]
    found["streamed_over_resident"] = ratios
    print(f"streamed / resident by round: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    (asked.out / "million.json").write_text(json.dumps(found) + "\n")
    draw(found, asked.out / "million.png")


if __name__ == "__main__":
    main()
