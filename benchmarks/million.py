"""A million images: conversion and training watched from outside, memory and speed.

    python -m benchmarks.million_archive /tmp/million.tar
    python -m benchmarks.million /tmp/million.tar docs/results

The archive is converted, and killed once on the way; then a VAE trains on it, each time in a new process:
streamed, resident (memory-mapped, as by default on a CPU) and copied into memory. How fast it is streamed and
resident is compared in one more process, in turns of some seconds. With --memory-limit GIB (Linux, control
groups of the first version, as root) an extra run, with the file cache emptied before, shows that streaming
gets by with less memory than the images take. What is found goes to OUT/million.json, and is drawn; `--only
training` keeps what is said there of the conversion.
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
PAIRS = 12
KILLED_AT = 0.4  # of the images
WINDOW = 10.0  # seconds over which the drawn speed is a mean
BATCH = 64
STEPS = 100  # of a turn
GROUPS = Path("/sys/fs/cgroup/memory")
KINDS = ("streamed", "resident", "in memory")
CONVERT = """
from genssl.data.loading import load
import sys
split = load(sys.argv[1], "train")
print(len(split), split.images.shape)
"""
TRAIN = """
import dataclasses, json, sys, time
from pathlib import Path
from genssl import config
from genssl.training import events, run
from genssl.training.options import Options
path, kind, minutes, out = sys.argv[1:]
if kind == "in memory":
    make_loader = run.make_loader
    def copied(split, device, limit):
        return make_loader(dataclasses.replace(split, images=split.images.clone()), device, limit)
    run.make_loader = copied
def listen(event):
    if isinstance(event, events.Progress):
        print(json.dumps([time.time(), event.step, event.images_per_second]), flush=True)
settings = config.make("vae", {"data": path, "epochs": 1, "sample_every": 0, "mixture_components": 0})
limit = {"streamed": 0.0, "resident": 1e6, "in memory": 1e6}[kind]
how = Options(device="cpu", max_minutes=float(minutes), resident_limit=limit, out=Path(out))
run.start(settings, how, listen)
"""


ALTERNATE = """
import json, sys, time
from genssl import config
from genssl.data.augment.views import Plain
from genssl.data.loader import Loader
from genssl.data.loading import load
from genssl.models.build import build
from genssl.training.loop import Training
import torch
path, pairs, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
split, settings = load(path, "train"), config.make("vae", {"data": path, "mixture_components": 0})
loops = []
for stream in (True, False):
    data = Loader(split, torch.device("cpu"), stream)
    loops.append(Training(build(settings), Plain(), data, settings).steps())
found = []
for number in range(pairs + 1):
    seconds = []
    for loop in loops if number % 2 else reversed(loops):
        start = time.perf_counter()
        for _ in range(steps):
            next(loop)
        seconds.append(time.perf_counter() - start)
    found.append([steps * 64 / each for each in (seconds if number % 2 else seconds[::-1])])
print(json.dumps(found[1:]))
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


def decoded_images() -> int:
    """Images decoded so far, by the size of the scratch file."""
    cache = Path(os.environ["GENSSL_CACHE"])
    return max((file.stat().st_size for file in cache.glob(".path-*.tmp/pixels")), default=0) // 3072


def convert(path: Path, count: int) -> dict[str, Any]:
    """Memory and progress of the conversion, killed once."""
    curve: list[list[float]] = []
    start, killed = time.time(), None
    while True:
        process = begin(CONVERT, path)
        for _, used in looks(process):
            done = decoded_images()
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

    figure, axes = plt.subplots(1, 3, figsize=(15, 5.2), layout="constrained")
    curve, killed = found["conversion"]["curve"], found["conversion"]["killed"][0]
    seconds = [row[0] for row in curve]
    axes[0].plot(seconds, [row[2] for row in curve], label="own memory")
    axes[0].plot(seconds, [row[1] * 3072 / MIB for row in curve], "--", label="pixels converted")
    axes[0].axvline(killed, color="gray", linewidth=0.8, label="killed")
    axes[0].set(title="conversion", xlabel="seconds", ylabel="MiB")
    for kind in [kind for kind in (*KINDS, "limited") if kind in found["training"]]:
        run = found["training"][kind]
        label = f"streamed under {run['limit_gib']} GiB" if kind == "limited" else kind
        times, own, mapped = zip(*run["memory"], strict=True)
        (line,) = axes[1].plot(times, own, label=f"{label}: own memory")
        axes[1].plot(times, mapped, "--", color=line.get_color(), label=f"{label}: mapped files")
        axes[2].plot(*zip(*momentary(run["speed"]), strict=True), label=label)
    axes[1].set(title="training: memory of the host", xlabel="seconds", ylabel="MiB")
    axes[2].set(title="training: speed", xlabel="images seen", ylabel="images / s", ylim=(0, None))
    for axis in axes:
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def alternate(path: Path) -> dict[str, Any]:
    """Images a second streamed and resident, in turns within one process."""
    process = begin(ALTERNATE, path, PAIRS, STEPS)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    pairs = json.loads(printed)
    ratios = sorted(streamed / resident for streamed, resident in pairs)
    names = ("streamed", "resident")
    speeds = {
        name: statistics.median(column) for name, column in zip(names, zip(*pairs, strict=True), strict=True)
    }
    return {"pairs": pairs, "median": speeds, "ratio": statistics.median(ratios), "ratios": ratios}


def training(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    stamp, archive = int(time.time()), asked.archive
    found: dict[str, Any] = {"turns": alternate(archive)}
    turns = found["turns"]
    print(f"in turns: {turns['median']}, ratio {turns['ratio']:.3f}", flush=True)
    for kind in KINDS:
        minutes = asked.minutes if kind == "streamed" else asked.minutes / 4
        found[kind] = train(archive, kind, minutes, work / f"{kind.replace(' ', '-')}-{stamp}")
        print(f"{kind}: {found[kind]['images_per_second']:,} images/s", flush=True)
    if asked.memory_limit:
        group = limited_group(asked.memory_limit)
        found["limited"] = train(archive, "streamed", asked.minutes / 4, work / f"limited-{stamp}", group)
        found["limited"]["limit_gib"] = asked.memory_limit
        print(
            f"under {asked.memory_limit} GiB: {found['limited']['images_per_second']:,} images/s", flush=True
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=1_010_000)
    parser.add_argument("--minutes", type=float, default=4.0, help="of the longest training")
    parser.add_argument("--memory-limit", type=float, help="GiB of an extra run")
    parser.add_argument("--only", choices=("conversion", "training"), help="one of the two parts")
    asked = parser.parse_args()
    work, kept = asked.archive.parent / "million", asked.out / "million.json"
    work.mkdir(exist_ok=True)
    os.environ["GENSSL_CACHE"] = str(work / "cache")
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if asked.only != "training":
        found["conversion"] = convert(asked.archive, asked.count)
        print(f"converted in {found['conversion']['seconds']:.0f} s", flush=True)
    if asked.only != "conversion":
        found["training"] = training(asked, work)
    kept.write_text(json.dumps(found) + "\n")
    draw(found, asked.out / "million.png")


if __name__ == "__main__":
    main()
