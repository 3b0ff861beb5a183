"""Everything that is to be known of a GPU, in stages that survive a cut.

    python -m benchmarks.gpu --minutes 9 [--only STAGE] [--svhn DATA] [--cifar DATA]
    python -m benchmarks.gpu --device cpu --tiny      # the same ways through, for tests

Each stage has a JSON file in --out with a row a measurement, written as soon as it is made: the same command
goes on behind the last row. No measurement is begun after the minutes; trainings are stopped and resumed. An
error is a row with its text, and is tried again.

    checks      a step on the device against the CPU, compiled against eager, bf16 against fp32, resuming
    speed       seconds of an epoch eager and compiled, memory, share of the measured matmul peak, idle time
    peers       lightly, the U-Nets of two libraries, and a plain VAE, as they come and tuned
    measures    the kNN vote, Frechet distance, precision to coverage, sampling and its noise
    trainings   SimSiam's four arms, DDPM and VAE on two kinds of digits, four numbers of diffusion steps
    assignment  the whole assignment by one command, with its time
"""

import argparse
import copy
import gc
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import cost, ddpm, fidelity, samplers, table
from benchmarks.gaps import gaps, kernels
from genssl import checkpoint, files, paths, run_info, runtime
from genssl.config import make
from genssl.data.augment.views import choose_views
from genssl.data.loader import place
from genssl.data.loading import load
from genssl.data.split import Split
from genssl.data.synthetic import render
from genssl.eval.feature_cache import cached_features
from genssl.eval.fidelity_features import default_features
from genssl.eval.sample import draw_samples
from genssl.metrics.fidelity import frechet_distance, prdc
from genssl.metrics.knn import knn_predict
from genssl.models.build import METHODS, build
from genssl.training.loop import Training

Row = dict[str, Any]
TOLERANCE = 1e-4  # between losses in fp32 on the device and on the CPU
# Between the first losses of a compiled and an eager training, and of bf16 and fp32
COMPILED_TOLERANCE, BF16_TOLERANCE = 1e-3, 0.02
DEVICE_TESTS = ("tests/test_runtime.py", "tests/data/test_loader.py")  # those that ask for a GPU
QUALITY = {"dpm++": (10, 20), "unipc": (10,), "ancestral": (1000,)}  # steps whose samples are compared
STEPS, WARM_UP, ROUNDS = 50, 10, 5
PEAK_SIDE = 8192  # of the matrices whose product is the peak
# Of a tiny run: cases of benchmarks.cost
TINY = {"simsiam": ("simsiam", {"encoder": "small"}), "vae": ("vae", {"width": "8"})}
LEAST_MINUTES = 0.5  # left, to begin a training


@dataclass(frozen=True)
class Setting:
    """How the stages are carried out."""

    device: torch.device
    tiny: bool
    until: float  # of time.monotonic
    svhn: str
    cifar: str
    runs: Path

    @property
    def minutes(self) -> float:
        """Minutes left."""
        return (self.until - time.monotonic()) / 60


# A measurement's name, and what makes its row
Cell = tuple[str, Callable[[], Row]]


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(action: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of a call, the device's work included, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def training_of(method: str, changes: Row, images: int, device: torch.device) -> Training:
    """A training on random images of two classes, as a run sets it up."""
    config = make(method, {"epochs": 1000, **changes})
    source = runtime.generator(0, "gpu")
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8, generator=source)
    split = Split(pixels, torch.arange(images) % 2, ("a", "b"), "noise", "train", "none").to(device)
    return Training(build(config).to(device), choose_views(config, split.classes), split, config)


def first_losses(training: Training, count: int) -> list[float]:
    """The losses of the next steps."""
    steps = training.steps()
    return [float(next(steps).losses["loss"]) for _ in range(count)]


# Checks


def checks(setting: Setting) -> Iterator[Cell]:
    """A row a method, and the tests that need a GPU."""
    names = ("vae", "simsiam") if setting.tiny else tuple(METHODS)
    for name in names:
        yield name, partial(check, name, setting)
    if setting.device.type == "cuda":
        yield "tests", partial(process, [sys.executable, "-m", "pytest", "-q", *DEVICE_TESTS])


def check(name: str, setting: Setting) -> Row:
    """How far the device is from the CPU, a compiled step from an eager one, and bf16 from fp32."""
    device, changes = (
        setting.device,
        {"batch_size": 16, **dict(cost.CASES.get(f"{name} small", (name, {}))[1])},
    )
    changes |= TINY["vae"][1] if name == "vae" and setting.tiny else {}

    def made(where: torch.device, precision: str) -> Training:
        return training_of(name, {**changes, "precision": precision}, 32, where)

    # The same draws on both devices, which have generators of their own: one forward and backward pass
    here, there = made(torch.device("cpu"), "fp32"), made(device, "fp32")
    loss, gradients = one_pass(here)
    device_loss, device_gradients = one_pass(there)
    row: Row = {"loss_difference": farthest([device_loss], [loss])}
    row["gradient_difference"] = float((device_gradients - gradients).norm() / gradients.norm())
    losses = {kind: first_losses(made(device, kind), 3) for kind in ("fp32", "bf16")}
    row |= {"fp32_losses": losses["fp32"], "bf16_losses": losses["bf16"]}
    compiled = made(device, "fp32")
    compiled.objective.compile(backend="eager" if setting.tiny else "inductor")
    row["compiled_losses"] = first_losses(compiled, 3)
    row["compiled_difference"] = farthest(row["compiled_losses"], losses["fp32"])
    row["bf16_difference"] = farthest(losses["bf16"], losses["fp32"])
    row["resumes_to_the_bit"] = resumes(partial(made, device, "fp32"))
    agrees = row["loss_difference"] < TOLERANCE and row["gradient_difference"] < 10 * TOLERANCE
    agrees &= row["compiled_difference"] < COMPILED_TOLERANCE and row["bf16_difference"] < BF16_TOLERANCE
    return row | {"agrees": agrees and row["resumes_to_the_bit"]}


def farthest(losses: list[float], expected: list[float]) -> float:
    """The largest difference of two losses, as a share of those above 1; not finite if one of them is not."""
    # Of a cosine near 0, rounding alone is a large share
    differences = [abs(a - b) / max(1.0, abs(b)) for a, b in zip(losses, expected, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


@runtime.measuring()
def _ieee(action: Callable[[], object]) -> object:
    # Gradients in a context that is for measuring without them, for its float32 products
    with torch.inference_mode(False), torch.enable_grad():
        return action()


def one_pass(training: Training) -> tuple[float, Tensor]:
    """The loss of the first images with draws of the CPU, and all its gradients in one vector."""
    n, source = training.batch_size, runtime.generator(0, "gpu")
    draws = [
        {name: value.to(training.device) for name, value in maker.draws(n, source).items()}
        for maker in (training.views, training.method)
    ]
    if training.labels is not None:
        draws[1]["labels"] = training.labels[:n]
    training.method.train()

    def both() -> float:
        loss = training.objective(training.split.images[:n], *draws)["loss"]
        loss.backward()
        return float(loss.detach())

    loss = _ieee(both)
    assert isinstance(loss, float)
    gradients = [p.grad.flatten().cpu() for p in training.method.parameters() if p.grad is not None]
    return loss, torch.cat(gradients)


def resumes(made: Callable[[], Training]) -> bool:
    """Whether two steps, a saved state and two more steps give the weights of four in one go.

    With deterministic algorithms: others of a GPU add in an order that no two runs share.
    """
    whole, first, second = made(), made(), made()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first_losses(whole, 4)
        first_losses(first, 2)
        second.restore(*copy.deepcopy(first.state()))
        first_losses(second, 2)
    finally:
        torch.use_deterministic_algorithms(False)
    pairs = zip(whole.method.state_dict().values(), second.method.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# Speed


def speed(setting: Setting) -> Iterator[Cell]:
    """The matmul peak, then each case eager and compiled."""
    yield "matmul peak", partial(matmul_peak, setting)
    for name, (method, changes) in (TINY if setting.tiny else cost.CASES).items():
        for compiled in (False, True) if setting.device.type == "cuda" else (False,):
            how = "compiled" if compiled else "eager"
            yield f"{name}, {how}", partial(epoch, method, changes, compiled, setting)


def matmul_peak(setting: Setting, dtype: torch.dtype = torch.bfloat16) -> Row:
    """Operations a second of a large product: what the hardware gives at most."""
    side = 256 if setting.tiny else PEAK_SIDE
    a = torch.randn(side, side, device=setting.device, dtype=dtype)
    took = seconds(lambda: a @ a, setting.device, ROUNDS)
    return {"flops_per_second": 2 * side**3 / took}


def epoch(method: str, changes: Row, compiled: bool, setting: Setting) -> Row:
    """A training's step: its time, memory, share of the matmul peak, and how long the device waits in it."""
    count, warm_up = (2, 1) if setting.tiny else (STEPS, WARM_UP)
    changes = {**changes, "batch_size": 8} if setting.tiny else changes
    batch = make(method, changes).batch_size
    # Counted before, on a training of its own: the counter sees no operators in a compiled graph
    flops = flops_of_a_step(training_of(method, changes, batch, setting.device))
    training = training_of(method, changes, batch * 4, setting.device)
    start = time.perf_counter()
    if compiled:
        training.compile()
    steps = training.steps()
    next(steps).losses["loss"].item()
    row: Row = {"first_step_seconds": time.perf_counter() - start, "batch": batch}
    row["precision"] = training.precision
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(warm_up):
        next(steps)
    took = seconds(lambda: [next(steps) for _ in range(count)], setting.device, 1 if setting.tiny else ROUNDS)
    images = cost.TRAIN_IMAGES[training.config.data]
    row |= {"step_ms": 1000 * took / count, "epoch_seconds": took / count * (images // batch)}
    if setting.device.type == "cuda":
        row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        row |= gaps(kernels(lambda: [next(steps) for _ in range(count)]), count)
    row["flops_per_second"] = flops / (took / count)
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    row["roofline_share"] = row["flops_per_second"] / matmul_peak(setting, dtype)["flops_per_second"]
    return row


def flops_of_a_step(training: Training) -> int:
    """Floating-point operations of a step that is not compiled."""
    with cost.flop_counter() as counter:
        next(training.steps())
    return int(counter.get_total_flops())


# Peers


def peers(setting: Setting) -> Iterator[Cell]:
    """The rows of benchmarks.peers, and SimSiam at the batch size of a GPU."""
    if setting.tiny:
        yield "pairs", lambda: {"skipped": "peers take longer than a tiny run"}
        return
    from benchmarks import peers, simsiam, vae
    from benchmarks.timing import all_in_turn

    simsiam.STEPS = {512: 4}
    makers: dict[str, Callable[[], Any]] = {"VAE, batch 64": lambda: vae.sides(setting.device)}
    for peer in ddpm.peers():
        makers[f"U-Net step, {peer.name}"] = partial(ddpm.training_sides, peer, setting.device)
        makers[f"U-Net forward, {peer.name}"] = partial(ddpm.forward_sides, peer, setting.device)
    makers["SimSiam, batch 512"] = lambda: simsiam.sides(512, setting.device)

    def compare(name: str, maker: Callable[[], Any]) -> dict[str, Any]:
        return peers.summary(name, "", all_in_turn(maker(), ROUNDS))

    for name, maker in makers.items():
        yield name, partial(compare, name, maker)


# Measures


def measures(setting: Setting) -> Iterator[Cell]:
    """What evaluations spend their time on."""
    return iter(
        [
            ("kNN", partial(vote, setting)),
            ("distances", partial(distances, setting)),
            ("step noise", partial(ddpm.noise_times, setting.device, 4 if setting.tiny else ddpm.NOISED)),
            *(
                (f"sampling, {sampler}", partial(draw, sampler, setting))
                for sampler in ("dpm++", "ancestral")
            ),
            *quality_cells(setting),
        ]
    )


def vote(setting: Setting) -> Row:
    """10,000 queries over a bank of 50,000 x 512."""
    from benchmarks import knn  # with peers that may not be installed

    rows = (500, 100) if setting.tiny else (knn.BANK_ROWS, knn.QUERY_ROWS)
    source = torch.Generator().manual_seed(0)
    means = knn.SEPARATION * torch.randn(knn.CLASSES, knn.DIMENSIONS, generator=source)
    (bank, labels), (queries, _) = (
        [part.to(setting.device) for part in knn.features(count, means, source)] for count in rows
    )
    took = seconds(
        lambda: knn_predict(bank, labels, queries, knn.CLASSES, knn.K, knn.TEMPERATURE),
        setting.device,
        ROUNDS,
    )
    return {"bank": rows[0], "queries": rows[1], "seconds": took}


def distances(setting: Setting) -> Row:
    """10,000 x 512 features against as many."""
    rows = 600 if setting.tiny else fidelity.ROWS
    real, fake = (fidelity.features(rows, i).to(setting.device) for i in (1, 2))
    frechet = seconds(lambda: frechet_distance(real, fake), setting.device, 1 if setting.tiny else ROUNDS)
    return {
        "rows": rows,
        "frechet_seconds": frechet,
        "prdc_seconds": seconds(lambda: prdc(real, fake, fidelity.K), setting.device, 1),
    }


@torch.inference_mode()
def draw(sampler: str, setting: Setting) -> Row:
    """Images of the network `small`: its weights do not matter for the time."""
    n, network = (2, "tiny") if setting.tiny else (512, "small")
    steps = {"dpm++": 20, "ancestral": 4 if setting.tiny else 1000}[sampler]
    method: Any = build(make("ddpm", {"network": network})).to(setting.device).eval()
    noise = runtime.generators(0, "sample", range(n))
    took = seconds(lambda: method.sample(n, noise, sampler, steps), setting.device, 1)
    return {"images": n, "network": network, "steps": steps, "seconds": took}


def quality_cells(setting: Setting) -> Iterator[Cell]:
    """The shipped DDPM by samplers and steps: from their distances, the time for equal ones is read."""
    for sampler, counts in ({"dpm++": (2,)} if setting.tiny else QUALITY).items():
        for steps in counts:
            yield f"quality, {sampler}, {steps} steps", partial(quality, sampler, steps, setting)


def quality(sampler: str, steps: int, setting: Setting) -> Row:
    """Seconds of samples of the shipped DDPM, and their Frechet distance to as many real images."""
    n = 16 if setting.tiny else 10_000
    method = checkpoint.load(paths.shipped_root() / "ddpm", setting.device)
    space = default_features(setting.device)
    # A few digits are rendered at once, where all of them take a minute
    digits = render.make("test", count=n) if setting.tiny else load(method.config.data, "test").take(n, 0)
    real = place(digits, setting.device)
    options: Row = {"sampler": sampler, "steps": steps}
    with runtime.measuring():
        features = cached_features(space, real, samplers.BATCH, lambda *_: None, setting.device)
        start = time.perf_counter()
        images = draw_samples(method, n, 0, samplers.BATCH, lambda *_: None, options)
        took = time.perf_counter() - start
        found = samplers.measured(features, images.to(setting.device), space)
    return {"sampler": sampler, "steps": steps, "images": len(images), "seconds": took, **found}


# Trainings


def trainings(setting: Setting) -> Iterator[Cell]:
    """Commands of genssl that train, each stopped when the minutes are over and resumed later."""
    for name, words in commands(setting).items():
        yield name, partial(train, name, words, setting)


def commands(setting: Setting) -> dict[str, list[str]]:
    """The trainings by name."""
    if setting.tiny:
        small = shlex.split("--data synthetic --limit 16 --epochs 1 --batch-size 8 --knn-every 0")
        return {"vae": ["vae", *small, "--set", "width=8"]}
    simsiam = ["simsiam", "--data", setting.cifar, "--epochs", "100"]
    arms = {
        "": [],
        ", no stop-gradient": ["--set", "stop_gradient=false"],
        ", no predictor": ["--set", "predictor=identity"],
        ", neither": ["--set", "stop_gradient=false", "--set", "predictor=identity"],
    }
    found = {f"simsiam{arm}": [*simsiam, *words] for arm, words in arms.items()}
    for data in (setting.svhn, "synthetic"):
        for method, words in (("vae", []), ("ddpm", ["--set", "network=small"])):
            found[f"{method}, {data}"] = [method, "--data", data, "--epochs", "70", *words]
    for timesteps in (50, 200, 500, 1000):
        words = ["--set", f"timesteps={timesteps}", "--set", "features_t=10", "--epochs", "20"]
        found[f"ddpm, T = {timesteps}"] = ["ddpm", "--data", setting.svhn, *words]
    return found


def train(name: str, words: list[str], setting: Setting) -> Row:
    """Begin or resume a training, for as long as there are minutes."""
    folder = setting.runs / "".join(c if c.isalnum() else "-" for c in name)
    begun = (folder / run_info.STATE).exists()
    arguments = ["--resume", str(folder)] if begun else [*words, "--out", str(folder), "--yes"]
    minutes = ["--max-minutes", f"{max(setting.minutes, 0.1):.1f}", "--device", str(setting.device)]
    row = genssl(["train", *arguments, *minutes])
    info = run_info.inspect(folder)
    lines = (folder / run_info.HISTORY).read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]
    return row | {"state": info.state, "history": history, "done": info.state == "finished"}


def genssl(words: list[str], limit: float | None = None) -> Row:
    """Carry out a command of genssl in a process of its own; RuntimeError with its last line if it fails."""
    return process([sys.executable, "-m", "genssl", *words], limit)


def process(command: list[str], limit: float | None = None) -> Row:
    """Carry out a command in a process of its own; RuntimeError with its last line if it fails."""
    shown, start = shlex.join(["python", *command[1:]]), time.perf_counter()
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"command": shown, "seconds": limit, "done": False}
    if ended.returncode != 0:
        raise RuntimeError((ended.stderr.strip() or ended.stdout.strip() or "no message").splitlines()[-1])
    return {"command": shown, "seconds": time.perf_counter() - start}


def assignment(setting: Setting) -> Iterator[Cell]:
    """The whole assignment; cut after the minutes, and gone on with by the same command."""
    if setting.tiny:
        yield "assignment", lambda: {"skipped": "it has tests of its own"}
        return
    out = ["--out", str(setting.runs / "assignment"), "--device", str(setting.device)]
    words = ["assignment", *out, "--data", setting.svhn, "--ssl-data", setting.cifar]
    yield "assignment", lambda: genssl(words, 60 * max(setting.minutes, 0.1))


STAGES = {
    "checks": checks, "speed": speed, "peers": peers, "measures": measures, "trainings": trainings,
    "assignment": assignment,
}  # fmt: skip


# Carrying out


def run_stage(name: str, setting: Setting, out: Path, about: Row) -> bool:
    """Make the rows of a stage that are missing; whether all are there."""
    file = out / f"{name}.json"
    rows: dict[str, Row] = files.read_json(file)["rows"] if file.exists() else {}
    for cell, action in STAGES[name](setting):
        before = rows.get(cell, {"done": False})
        if before.get("done", True):
            continue
        if setting.minutes < LEAST_MINUTES:
            return False
        try:
            row = action()
        except Exception as error:  # of whatever is measured: the other rows are still wanted
            row = {"error": f"{type(error).__name__}: {error}"[:500], "done": False}
        spent = before.get("seconds_so_far", 0.0) + row.get("seconds", 0.0)
        rows[cell] = row | ({"seconds_so_far": spent} if "command" in row else {})
        files.write_json(file, {**about, "rows": rows})
        print(f"{name}, {cell}: { {k: v for k, v in row.items() if k != 'history'} }", flush=True)
        gc.collect()
    return all(row.get("done", True) for row in rows.values())


def main() -> None:
    """Carry out the stages in order until the minutes are over."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after so many")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=list(STAGES), help="stages")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="the least of everything, for tests")
    parser.add_argument("--svhn", default="svhn", help="data of the VAE and the DDPM")
    parser.add_argument("--cifar", default="cifar10", help="data of SimSiam")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu"), help="folder of the JSON files")
    parser.add_argument("--runs", type=Path, default=Path("checkpoints/gpu"), help="folder of the trainings")
    asked = parser.parse_args()
    device = runtime.choose_device(asked.device)
    until = time.monotonic() + 60 * asked.minutes
    setting = Setting(device, asked.tiny, until, asked.svhn, asked.cifar, asked.runs)
    about = {"device": runtime.describe(device), "versions": table.versions("torch"), "tiny": asked.tiny}
    for folder in (asked.out, asked.runs):
        folder.mkdir(parents=True, exist_ok=True)
    left = [name for name in asked.only if not run_stage(name, setting, asked.out, about)]
    print(f"left for the same command: {', '.join(left)}" if left else "all stages are done")


if __name__ == "__main__":
    main()
