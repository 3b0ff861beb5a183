"""Seeded hostile inputs, counted by kind and outcome.

    python -m tests.campaign_inputs docs/results/hostile.json --inputs 3000

Each input is one spoiled file, folder, archive, cache or command line, and one command that reads it. Input i
of a kind depends on (seed, kind, i) alone. With --seconds the same command continues where the last stopped.
OUT says of which seed and device its counts are, and lists the inputs that ended neither well nor in a line.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from genssl import files
from genssl.cli import app
from genssl.run_info import MODEL, STATE
from tests.conftest import call, write_digits
from tests.mutations import (
    SECONDS,
    TooLong,
    altered_text,
    archive_of,
    flipped,
    images,
    in_time,
    memory,
    resigned,
)

POLITE = ("ok", "one line")
OUTCOMES = (*POLITE, "traceback", "unexpected error", "other exit code", f"over {SECONDS} s", "process ended")
LISTED = 20  # failures in the file
TEXTS = (
    "config.json",
    "environment.json",
    "history.jsonl",
    "eval/sample-n4.json",
    "eval/latent-profile.json",
)
SIGNED = ("config", "metrics", "training", "epoch", "finished", "format")
HUGE = 10**22
OPTION_VALUES = (
    "", " ", "0", "-1", "1e400", "nan", "inf", str(HUGE), "9" * 5000, "a" * 5000, "~nobody-here/x", "../../x",
    "/dev/null/x", "/etc/passwd", "[", "]", "{}", "null", "--", "\x1b[31m", "\u202e", "é", "\udcff", "a\0b",
    "*", "%s", "hf:", "hf:a/b/c/d", "-remix", ".", "1:2:0", ",", ":", "1,,2", "a=b=c", "=",
    "x" * 300 + ".png",
)  # fmt: skip
Line = list[object]


@dataclass
class Bench:
    """Folders to spoil copies of.

    Attributes:
        folder: of everything.
        run: a trained VAE with numbers in eval/.
        digits: its images.
    """

    folder: Path
    run: Path = field(init=False)
    digits: Path = field(init=False)

    def __post_init__(self) -> None:
        self.run, self.digits = self.folder / "runs" / "vae", self.folder / "digits"
        os.environ["GENSSL_CACHE"] = str(self.folder / "cache")
        os.environ["HF_HUB_OFFLINE"] = "1"

    def make(self) -> None:
        """Write the digits and train the run."""
        write_digits(self.digits, 40, 20, 16)
        small = ["--image-size", 16, "--set", "width=4", "--set", "z_dim=4", "--set", "mixture_components=2"]
        for command in (
            ["train", "vae", "--data", self.digits, "--epochs", 2, "--batch-size", 8, *small,
             "--set", "decoder_variance=learned", "--out", self.run],
            ["sample", self.run, "-n", 4], ["latent-profile", self.run],
        ):  # fmt: skip
            result = call(*command)
            assert result.exit_code == 0, result.output

    def copy(self) -> Path:
        """A new copy of the run, without most pictures."""
        target = self.folder / "copies" / "odd"
        shutil.rmtree(target.parent, ignore_errors=True)
        return Path(shutil.copytree(self.run, target, ignore=shutil.ignore_patterns("*-0*.png", "*over*")))

    def fresh(self) -> Path:
        """An empty folder for data."""
        folder = self.folder / "data"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def readers(run: Path, bench: Bench) -> list[Line]:
    """Commands that read the texts of a run."""
    out = bench.folder / "x.html"
    return [
        ["runs", "show", run], ["runs", "verify", run], ["report", run, "--out", out],
        ["report", run, "--json"],
        ["--checkpoints", run.parent, "runs", "list"], ["train", "--config", run, "--dry-run"],
        ["train", "--resume", run], ["sample", run, "-n", 1],
    ]  # fmt: skip


def texts(bench: Bench, chance: random.Random) -> Line:
    """A JSON file of a run."""
    run = bench.copy()
    file = run / chance.choice(TEXTS)
    file.write_bytes(altered_text(file.read_bytes(), chance))
    return chance.choice(readers(run, bench))


def headers(bench: Bench, chance: random.Random) -> Line:
    """The header of a safetensors file, or the file's length."""
    run = bench.copy()
    file = run / chance.choice((MODEL, STATE))
    content = file.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header = flipped(content[8:length], chance)
    prefix = len(header).to_bytes(8, "little") if chance.random() < 0.5 else flipped(content[:8], chance)
    spoiled = prefix + header + content[length:]
    file.write_bytes(spoiled[: chance.randrange(len(spoiled))] if chance.random() < 0.1 else spoiled)
    return chance.choice([*readers(run, bench), ["reconstruct", run, "-n", 1]])


def tensor_bytes(bench: Bench, chance: random.Random) -> Line:
    """The bytes of tensors."""
    run = bench.copy()
    file = run / chance.choice((MODEL, STATE))
    content = file.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:length] + flipped(content[length:], chance))
    return chance.choice([["runs", "verify", run], ["sample", run, "-n", 1], ["train", "--resume", run]])


def signed(bench: Bench, chance: random.Random) -> Line:
    """Metadata and tensors whose digests are right, as somebody made them by hand."""
    run = bench.copy()
    name = chance.choice((MODEL, STATE))
    tensors, metadata = files.read_tensors(run / name)
    tensors = {key: value.clone() for key, value in tensors.items()}
    key = chance.choice([*metadata] if name == STATE else SIGNED)
    metadata[key] = altered_text(json.dumps(metadata[key]).encode(), chance).decode(errors="replace")
    if chance.random() < 0.5 and name == MODEL:
        metadata[key] = altered_text(files.read_header(run / MODEL)[1][key].encode(), chance).decode(
            errors="replace"
        )
    if chance.random() < 0.3:
        odd = chance.choice([*tensors])
        tensors[odd] = chance.choice((tensors[odd] * torch.nan, tensors[odd].flatten(), torch.zeros(3)))
    with suppress(UnicodeEncodeError):
        files.write_tensors(run / name, tensors, metadata)
    return chance.choice(readers(run, bench))


def odd_files(bench: Bench, chance: random.Random) -> Line:
    """A file of a run that is a link, a pipe, a folder or a device."""
    run = bench.copy()
    file = run / chance.choice(
        (*TEXTS, MODEL, STATE, "SHIPPED.txt", "samples/epoch-001.png", "eval", "samples")
    )
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    outside = bench.folder / "outside"
    outside.write_bytes(chance.choice((b"secret", b"{}", b"[]", (bench.run / MODEL).read_bytes())))
    match chance.randrange(8):
        case 0:
            os.mkfifo(file)
        case 1:
            file.mkdir()
        case 2:
            with file.open("wb") as huge:
                huge.truncate(2**40)
        case 3:
            file.write_bytes(b"")
        case _:
            file.symlink_to(chance.choice(("/dev/zero", "/dev/full", file, outside, "nothing", "/", run)))
    return chance.choice([*readers(run, bench), ["train", "--resume", run, "--epochs", 3]])


def archives(bench: Bench, chance: random.Random) -> Line:
    """A .zip or .tar of images."""
    kind = chance.choice(("zip", "pax", "gnu", "gz", "bz2", "xz"))
    mutate = resigned if kind in {"pax", "gnu"} and chance.random() < 0.5 else flipped
    path = bench.fresh() / ("a.zip" if kind == "zip" else "a.tar")
    path.write_bytes(mutate(archive_of(kind), chance))
    return _reading(path, chance)


def image_files(bench: Bench, chance: random.Random) -> Line:
    """A folder of images, some of them damaged, links or pipes."""
    folder = bench.fresh()
    for name, content in images().items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(flipped(content, chance))
    match chance.randrange(8):
        case 0:
            os.mkfifo(folder / "set" / "a" / "p.png")
        case 1:
            # A link to / would be followed, and every image of the disk read: that is asked for, and no hang
            target = chance.choice(("l.png", "/dev/zero", "..", "/dev", "nothing"))
            (folder / "set" / "a" / "l.png").symlink_to(target)
    return _reading(folder, chance)


def arrays(bench: Bench, chance: random.Random) -> Line:
    """A .npy or .npz."""
    path = bench.fresh() / chance.choice(("a.npy", "a.npz"))
    values = np.arange(4 * 8 * 8 * 3).reshape(4, 8, 8, 3).astype(chance.choice(("u1", "f4", "i8", "?", "c8")))
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        np.savez(path, images=values, labels=np.arange(4))
    content = path.read_bytes()
    path.write_bytes(
        flipped(content[:200], chance) + content[200:] if chance.random() < 0.7 else content[:-9]
    )
    return _reading(path, chance)


def _reading(path: Path, chance: random.Random) -> Line:
    skip = ["--skip-bad"] if chance.random() < 0.7 else []
    return ["data", "fetch", path, "--image-size", 16, *skip]


def caches(bench: Bench, chance: random.Random) -> Line:
    """A file of the cache: cut, zeroed, changed, or no file."""
    folder = bench.folder / "cache"
    (entry,) = folder.glob("path-digits-*-train")
    file = entry / chance.choice(("images.npy", "labels.npy", "sums.npy", "split.json"))
    content = file.read_bytes()
    match chance.randrange(5):
        case 0:
            file.write_bytes(content[: chance.randrange(len(content))])
        case 1:
            file.write_bytes(bytes(len(content)))
        case 2:
            file.unlink()
        case 3:
            start = chance.randrange(len(content))
            file.write_bytes((content[:start] + bytes(200) + content[start + 200 :])[: len(content)])
        case _:
            file.write_bytes((altered_text if file.suffix == ".json" else flipped)(content, chance))
    out = bench.folder / "copies" / "new"
    shutil.rmtree(out, ignore_errors=True)
    train = ["train", "vae", "--data", bench.digits, "--image-size", 16, "--set", "width=4", "--out", out]
    return chance.choice([
        ["data", "preview", bench.digits, "--image-size", 16, "--out", bench.folder / "p.png"],
        ["data", "cache", "list"], [*train, "--epochs", 1, "--sample-every", 0],
        ["reconstruct", bench.run, "-n", 2, "--out", bench.folder / "r.png"],
    ])  # fmt: skip


def _restore_cache(bench: Bench) -> None:
    """A sound cache for the next input: an entry that is damaged is made again only where that is noticed."""
    shutil.rmtree(bench.folder / "cache", ignore_errors=True)
    assert call("data", "fetch", bench.digits, "--image-size", 16).exit_code == 0


def _commands() -> list[tuple[list[str], list[str]]]:
    """Every command's words, and its options that take a value."""
    listed = []

    def visit(command: Any, words: list[str]) -> None:
        if children := getattr(command, "commands", None):
            for name, child in children.items():
                visit(child, [*words, name])
            return
        values = [p for p in command.params if p.opts[0].startswith("-") and not getattr(p, "is_flag", False)]
        listed.append((words, [option.opts[0] for option in values]))

    visit(typer.main.get_command(app), [])
    return listed


COMMANDS = _commands()


def options(bench: Bench, chance: random.Random) -> Line:
    """A command line of values that nobody means."""
    # What would train, download or draw for minutes is only asked for its settings
    safe: dict[str, Line] = {
        "train": ["vae", "--data", bench.digits, "--dry-run"], "ablate": ["nothing"],
        "demo": ["--minutes", "nan"], "assignment": ["--out", "/dev/null/x"],
    }  # fmt: skip
    words, given = chance.choice([entry for entry in COMMANDS if entry[0] != ["data", "fetch"]])
    last = safe.get(words[0], [])
    line: Line = list(words)
    if not last and chance.random() < 0.8:
        line.append(chance.choice([str(bench.run), *OPTION_VALUES]))
    for option in chance.sample(given, min(len(given), chance.randint(1, 2))):
        line.append(f"{option}={chance.choice(OPTION_VALUES)}")
    return [*line, *last]  # the last of an option's values counts


KINDS: dict[str, Callable[[Bench, random.Random], Line]] = {
    "texts of a run": texts, "headers of tensors": headers, "bytes of tensors": tensor_bytes,
    "signed tensors": signed, "files that are none": odd_files, "archives": archives, "images": image_files,
    "arrays": arrays, "caches": caches, "options": options,
}  # fmt: skip


def outcome_of(line: Line) -> tuple[str, str]:
    """Carry out a command in this process; how it ended, and what it said."""
    try:
        with in_time():
            result = call(*line)
    except TooLong:
        return f"over {SECONDS} s", ""
    output = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "traceback", repr(result.exception)
    if "Traceback" in output:
        return "traceback", output
    if "unexpected error" in output:
        return "unexpected error", output
    if result.exit_code == 0:
        return "ok", output
    is_line = result.exit_code in {1, 2} and output.splitlines()[-1:] != [""]
    return ("one line" if is_line else "other exit code"), output


def carry_out(kind: str, bench: Bench, inputs: range, seed: int, until: float) -> dict[str, Any]:
    """Inputs of a kind, until a time: how many by outcome, the longest time, the memory, and failures."""
    counts: Counter[str] = Counter()
    failures, longest, before = [], 0.0, memory()
    for i in inputs:
        if time.time() > until:
            break
        if kind == "caches":
            _restore_cache(bench)
        line = KINDS[kind](bench, random.Random(f"{seed} {kind} {i}"))
        os.chdir(bench.folder)
        start = time.monotonic()
        outcome, said = outcome_of(line)
        longest = max(longest, time.monotonic() - start)
        counts[outcome] += 1
        if outcome not in POLITE:
            text = f"{said[-600:]}".replace(str(bench.folder), "FOLDER")
            failures.append({"input": i, "command": [str(w)[:80] for w in line[:3]], "said": text})
    mib = (memory() - before) / 2**20
    return {"outcomes": dict(counts), "seconds": longest, "mib": mib, "failures": failures}


def _in_process(start: str, target: Callable[..., None], *arguments: object) -> int | None:
    """Call a function in a process of its own; returns how that ended."""
    context: Any = multiprocessing.get_context(start)
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join()
    code: int | None = process.exitcode
    return code


def _make(folder: Path) -> None:
    torch.set_num_threads(1)
    Bench(folder).make()


def _piece(kind: str, folder: Path, inputs: range, seed: int, until: float) -> dict[str, Any]:
    """`carry_out` in a process of its own, whose memory is that of the kind and whose end is an outcome."""
    file = folder / "counts.json"
    file.unlink(missing_ok=True)
    code = _in_process("fork", _write_counts, file, kind, folder, inputs, seed, until)
    if file.exists():
        record: dict[str, Any] = json.loads(file.read_text())
        return record
    failure = {"input": inputs[0], "command": [], "said": f"exit code {code}, in one of {inputs}"}
    return {"outcomes": {"process ended": 1}, "seconds": 0.0, "mib": 0.0, "failures": [failure]}


def _write_counts(file: Path, kind: str, folder: Path, inputs: range, seed: int, until: float) -> None:
    torch.set_num_threads(1)
    file.write_text(json.dumps(carry_out(kind, Bench(folder), inputs, seed, until)))


def add(total: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a piece's counts to those of its kind."""
    for outcome, n in piece["outcomes"].items():
        total["outcomes"][outcome] = total["outcomes"].get(outcome, 0) + n
    total["seconds"] = round(max(total["seconds"], piece["seconds"]), 2)
    total["mib"] = round(max(total["mib"], piece["mib"]))
    total["failures"] = (total["failures"] + piece["failures"])[:LISTED]


def new_record(seed: int) -> dict[str, Any]:
    """Counts of nothing yet."""
    kinds = {kind: {"outcomes": {}, "seconds": 0.0, "mib": 0, "failures": []} for kind in KINDS}
    device = f"{platform.system()} {platform.machine()}, CPU, Python {platform.python_version()}"
    return {"seed": seed, "device": device, "inputs": 0, "outcomes": {}, "kinds": kinds}


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder so deep that ../../x is in one, too."""
    with tempfile.TemporaryDirectory(prefix="genssl-campaign-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "a" / "b"
        folder.mkdir(parents=True)
        yield folder


def run(out: Path, inputs: int, seed: int, seconds: float) -> dict[str, Any]:
    """Carry out what is left of `inputs` inputs, as far as there is time; returns and writes the counts."""
    record = json.loads(out.read_text()) if out.exists() else new_record(seed)
    assert record["seed"] == seed, "the counts are of another seed"
    until = time.time() + seconds
    with _folder() as folder:
        # Spawned: autograd's threads do not survive a fork
        assert _in_process("spawn", _make, folder) == 0
        # What takes seconds to import, and memory, is no input's own
        for name in ("torch._dynamo", "matplotlib.pyplot", "genssl.training.run", "genssl.eval.sample"):
            importlib.import_module(name)
        for kind in KINDS:
            total = record["kinds"][kind]
            done, most = sum(total["outcomes"].values()), inputs // len(KINDS)
            if done < most and time.time() < until:
                add(total, _piece(kind, folder, range(done, most), seed, until))
            _write(out, record)
            print(kind, total["outcomes"], f"{total['seconds']} s", f"{total['mib']} MiB", flush=True)
    return dict(record)


def _write(out: Path, record: dict[str, Any]) -> None:
    sums: Counter[str] = Counter()
    for each in record["kinds"].values():
        sums.update(each["outcomes"])
    record |= {"inputs": sums.total(), "outcomes": {name: sums[name] for name in OUTCOMES}}
    files.write_json(out, record)


def show(kind: str, number: int, seed: int) -> None:
    """Carry out one input alone, and print what is said."""
    with _folder() as folder:
        bench = Bench(folder)
        bench.make()
        print(json.dumps(carry_out(kind, bench, range(number, number + 1), seed, 1e18), indent=2))


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=1e9, help="Stop after so many; it can be continued.")
    parser.add_argument("--kind", choices=KINDS, help="With --input: carry out one input alone, and show it.")
    parser.add_argument("--input", type=int, default=0)
    asked = parser.parse_args()
    if asked.kind:
        show(asked.kind, asked.input, asked.seed)
        return
    record = run(asked.out, asked.inputs, asked.seed, asked.seconds)
    sys.exit(any(record["outcomes"][name] for name in OUTCOMES if name not in POLITE))


if __name__ == "__main__":
    main()
