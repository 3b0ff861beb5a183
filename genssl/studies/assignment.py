"""The whole assignment as a plan: what its report needs, in the order in which it can be made.

The assignment is IFT6135's third (2023): a VAE and a DDPM on SVHN, SimSiam on CIFAR-10. Its figures show 70
epochs of both generative models; its question 3.4 asks for 100 epochs of SimSiam.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from genssl import config as configs
from genssl.eval.noise_sweep import BANK, higher_levels, network_calls
from genssl.models.ddpm import FAST_STEPS
from genssl.runs import run_name
from genssl.runtime import choose_device
from genssl.studies import measures
from genssl.studies.plan import REPORT_SECONDS, Cost, Length, Plan, Size, Step, divide, evaluation, length_for
from genssl.training.events import Listener, Note
from genssl.training.options import Options
from genssl.training.splits import require_data

NAMED = ("data", "epochs", "limit", "seed", "knn_every")  # settings that have options of their own
LIKELIHOOD_IMAGES = 1000
BOUND_IMAGES, BOUND_TIMES = 256, 50
SWEPT_IMAGES = 128  # a noise level
SWEPT_AMONG = 26_032  # test images of SVHN, whose features are compared
FEW_AMONG = 2_000  # of them where there is little time
LAST_COARSE_LEVEL = 640  # at which the sweep ends then; t* of the course's DDPM was near 460
UNASKED = ("--yes",)  # of a training: the plan was asked for as a whole
SAMPLES = 512  # whose fidelity is measured on a CPU
# Samples in figures 4 and 10. The DDPM takes every step of its process: a fast sampler makes speckle of few
# epochs
SHOWN = 64
TEST_IMAGES = 10_000  # of CIFAR-10
WEIGHTS = 100  # importance samples of an image
TIMESTEPS = 1000
# Noise levels t' of the sweep, which goes on above them until t* is reached
FINE, COARSE = range(16, 257, 16), range(16, 257, 48)
# Of a DDPM as small as the one that ships, for the default features of an image. Measured on one thread of a
# CPU: 138 images a second beside 154 calls
ENCODING_CALLS = 1.1
# Seconds of a step beside its network calls, on a CPU thread that trains the VAE at REFERENCE images a second
REFERENCE = 900.0
START = 1.0  # reading data and weights, drawing one figure
TRAINING = 2.0  # drawing the figures of a training and what is fitted at its end
PROBE = 5.0  # fitting a linear classifier
PREVIEW_CALLS = 640  # of a DDPM, for the last pictures and test losses of its training


@dataclass(frozen=True)
class Part:
    """One method's training: on which data, with which settings.

    Attributes:
        method: what is trained.
        data: what it learns.
        settings: those that differ from the defaults.
        images_per_second: of training, in a trial; None: it has no budget.
        seconds: of the budget.
        slowness: by how much the machine is slower than the one of START and its like.
    """

    method: str
    data: str
    settings: dict[str, Any]
    images_per_second: float | None = None
    seconds: float = 0.0
    slowness: float = 1.0

    def options(self, other: str = "--set") -> list[str]:
        """The settings as options; those without one of their own as `other`: --set, or --base of ablate."""
        words = []
        for name, value in {"data": self.data, **self.settings}.items():
            text = "none" if value is None else str(value)
            named = [f"--{name.replace('_', '-')}", text]
            words += named if name in NAMED else [other, f"{name}={text}"]
        return words

    def cost(self, seconds: float = START, *, calls: float = 0, scalable: float = 0, size: Size) -> Cost:
        """What an evaluation is expected to take.

        Args:
            seconds: beside network calls, on the machine of REFERENCE.
            calls: of the network, each on one image, at any size.
            scalable: calls that come on top at full size.
            size: how the evaluation is made smaller.
        """
        return Cost(self.seconds_of(seconds, calls), self.seconds_of(0, scalable), sizes=(size,))

    def training(self, seconds: float = TRAINING, calls: float = 0) -> Cost:
        """What a training is expected to take; `seconds` and `calls` are those beyond its clock."""
        fixed = self.seconds_of(seconds, calls)
        return Cost(fixed, planned_seconds=self.seconds, has_clock=True, group=self.method)

    def seconds_of(self, seconds: float, calls: float = 0) -> float:
        """Seconds on this machine, of network calls and of other work."""
        # a training step costs about three forward passes, and with two views per image six
        passes = 6 if self.method == "simsiam" else 3
        in_calls = calls / (passes * self.images_per_second) if self.images_per_second else 0.0
        return self.slowness * seconds + in_calls


def steps_of(
    vae: Part, ddpm: Part, simsiam: Part, *, device: str, full: bool = True, samples: int = SAMPLES
) -> tuple[Step, ...]:
    """Every step, at its full size.

    Args:
        vae: how it is trained.
        ddpm: how it is trained.
        simsiam: how it is trained.
        device: as in --device.
        full: the sweep takes all noise levels; else it takes fewer.
        samples: of each model, whose fidelity is measured.
    """
    slowness = max(1.0, REFERENCE / (vae.images_per_second or REFERENCE))
    vae, ddpm, simsiam = (replace(part, slowness=slowness) for part in (vae, ddpm, simsiam))
    steps = [*_vae(vae), *_ddpm(ddpm, full), *_simsiam(simsiam), *_quality(vae, ddpm, samples)]
    if vae.images_per_second is None:
        steps = [replace(step, cost=None) for step in steps]
    return tuple(step.on(device) for step in steps)


def _vae(part: Part) -> Iterator[Step]:
    yield _training(part, "train the VAE (figures 1 to 3)", part.training())
    for seconds, title, command in (
        (0.1 * START, "draw samples of the VAE (figure 4)", "sample"),
        (1.5 * START, "profile the latents (figure 5)", "latent-profile"),
        (0.1 * START, "interpolate (figure 6)", "interpolate"),
        (START, "reconstruct", "reconstruct"),
    ):
        yield evaluation(title, command, "vae").with_cost(Cost(part.seconds_of(seconds)))
    images = Size("--limit", LIKELIHOOD_IMAGES, 100)
    likelihood = evaluation("estimate the likelihood", "importance-ll", "vae", "--limit", images.full)
    yield likelihood.with_cost(part.cost(scalable=WEIGHTS * images.full, size=images))


def _ddpm(part: Part, full: bool) -> Iterator[Step]:
    yield _training(part, "train the DDPM (figures 7 and 8)", part.training(calls=PREVIEW_CALLS))
    levels = FINE if full else COARSE
    until = TIMESTEPS if full else LAST_COARSE_LEVEL
    images = Size("--queries", SWEPT_IMAGES, 32)
    sweep = evaluation(
        "noise images and come back (figure 9)", "reconstruct", "ddpm",
        "--sweep", f"{levels.start}:{levels.stop - 1}:{levels.step}", "--until", until,
        "--queries", images.full, *(() if full else ("--limit", FEW_AMONG)),
    )  # fmt: skip
    # As if t* were not reached: what is left over then goes to the next steps
    most = [*levels, *higher_levels(levels[-1], until)]
    rows, among = network_calls(most, 0), ENCODING_CALLS * ((SWEPT_AMONG if full else FEW_AMONG) + BANK)
    calls = network_calls(most, images.full) - rows + ENCODING_CALLS * len(most) * images.full
    yield sweep.with_cost(part.cost(2 * START, calls=rows + among, scalable=calls, size=images))
    drawing = evaluation("draw samples of the DDPM (figure 10)", "sample", "ddpm", "--sampler", "ancestral")
    yield drawing.with_cost(part.cost(scalable=SHOWN * TIMESTEPS, size=Size("-n", SHOWN, 8)))
    images = Size("--limit", BOUND_IMAGES, 32)
    limits = ("--limit", images.full, "--t-samples", BOUND_TIMES)
    bound = evaluation("bound the likelihood", "bits-per-dim", "ddpm", *limits)
    yield bound.with_cost(part.cost(scalable=BOUND_TIMES * images.full, size=images))


def _simsiam(part: Part) -> Iterator[Step]:
    yield _training(part, "train SimSiam", part.training())
    limit = part.settings.get("limit")
    limits: list[object] = [] if limit is None else ["--limit", limit]
    bank, images = limit or 5 * TEST_IMAGES, Size("--test-limit", TEST_IMAGES, 500)
    for title, command, seconds in (
        ("classify by nearest neighbors", "knn-eval", START),
        ("classify by a linear layer", "linear-eval", START + PROBE),
    ):
        step = evaluation(title, command, "simsiam", *limits)
        yield step.with_cost(part.cost(seconds, calls=bank, scalable=images.full, size=images))
    for title, setting, change, runs in (
        # the first of them measures the baseline, too
        ("train without stop-gradient (figure 11)", "stop_gradient", ["--no-stopgrad"], 2),
        ("train without predictor (figure 12)", "predictor", ["--predictor", "identity"], 1),
        ("train with a wider projector (figure 13)", "projector_dim", ["--proj-dim", "4096"], 1),
    ):
        config = configs.make("simsiam", {**part.settings, "data": part.data})
        folder = f"ablate-{run_name(config, None)}-{setting}"
        words = ("ablate", "simsiam", *change, *part.options("--base"))
        cost = part.training(TRAINING + runs * PROBE, runs * (bank + TEST_IMAGES))
        yield Step(title, words, f"{folder}/ablate.json", how=UNASKED, cost=cost)


def _quality(vae: Part, ddpm: Part, samples: int) -> Iterator[Step]:
    images = Size("-n", samples, 64)
    for part, title, calls in ((vae, "the VAE's", 1), (ddpm, "the DDPM's", FAST_STEPS)):
        method = part.method
        step = evaluation(f"measure {title} samples", "fidelity", method)
        yield step.with_cost(part.cost(4 * START, scalable=calls * samples, size=images))
    measuring = (
        measures.SAMPLES_SHOWN * TIMESTEPS
        + measures.BOUND_IMAGES * measures.BOUND_TIMES
        + measures.SAMPLES_TIMED * FAST_STEPS
    )
    yield _step(
        "compare both (question 2.2 d)", "compare-vae-ddpm/compare.json", "compare", "vae", "ddpm"
    ).with_cost(ddpm.cost(6 * START, calls=measuring, scalable=FAST_STEPS * samples, size=images))


def _training(part: Part, title: str, cost: Cost) -> Step:
    words = ("train", part.method, *part.options())
    makes = f"{part.method}/model.safetensors"
    return Step(title, words, makes, trains=part.method, how=UNASKED, cost=cost)


def _step(title: str, makes: str, *arguments: object) -> Step:
    return Step(title, tuple(str(argument) for argument in arguments), makes)


FULL_EPOCHS = {"vae": 70, "ddpm": 70, "simsiam": 100}
SHARES = {"vae": 0.06, "ddpm": 0.3, "simsiam": 0.075}  # of a budget; four SimSiams are trained
KNN_LOOKS = 3  # at the accuracy of a SimSiam that has a budget: each takes as long as many steps
TITLE = "IFT6135, assignment 3"
MANY = 10_000  # samples whose fidelity is measured on a GPU


def assignment(
    data: str,
    ssl_data: str,
    budget: float | None,
    device: str,
    seed: int,
    listen: Listener,
) -> Plan:
    """Make the plan; with a budget, after a trial of each training.

    Args:
        data: what the generative models learn.
        ssl_data: what SimSiam learns.
        budget: minutes that everything may take; None: as long as it takes.
        device: as in --device.
        seed: of everything random.
        listen: told what happens.

    Raises:
        UserError: the data or the device is not to be had.
    """
    sources = {"vae": data, "ddpm": data, "simsiam": ssl_data}
    # SimSiam comes last, hours or days after the start
    require_data((configs.make(method, {"data": source}) for method, source in sources.items()), listen)
    small = choose_device(device).type == "cpu"
    if budget is not None:
        return _plan_within(60 * budget, sources, device, seed, listen, small=small)
    if small:
        listen(Note("without a --budget this takes weeks on a CPU; --budget 60 makes it an hour"))
    parts = [
        Part(method, source, {"epochs": FULL_EPOCHS[method], "seed": seed})
        for method, source in sources.items()
    ]
    return Plan(TITLE, (), steps_of(*parts, device=device))


def _plan_within(
    seconds: float, sources: Mapping[str, str], device: str, seed: int, listen: Listener, *, small: bool
) -> Plan:
    """The plan of a budget: trainings take SHARES of it, and evaluations as many images as fit into the rest.

    Where the rest is too short even for the smallest evaluations, trainings become shorter.
    """
    start = time.monotonic()
    parts, lengths = {}, {}
    for method, source in sources.items():
        kind = configs.config_class(method)
        cheap = kind.with_recipe(kind.on_a_cpu) if small else {}
        settings = {"epochs": FULL_EPOCHS[method], "seed": seed, **cheap}
        listen(Note(f"a few steps of {method} on {source}, to see how long they take"))
        trial, share = {**settings, "data": source}, seconds * SHARES[method]
        lengths[method] = length_for(method, trial, share, Options(device=device), listen)
        parts[method] = Part(method, source, settings)

    def steps(factor: float, *, full: bool) -> tuple[Step, ...]:
        for method, length in lengths.items():
            portion = factor * seconds * SHARES[method]
            lengths[method] = length.within(portion)
            settings = parts[method].settings | _shortened(method, lengths[method])
            parts[method] = replace(
                parts[method], settings=settings, seconds=portion, images_per_second=length.images_per_second
            )
        samples = SAMPLES if small else MANY
        return steps_of(*parts.values(), device=device, full=full, samples=samples)

    spent = time.monotonic() - start
    left = seconds - spent - REPORT_SECONDS
    steps_to_take = steps(1.0, full=True)
    factor, share = divide(_costs(steps_to_take), left)
    if share < 1:
        factor, share = divide(_costs(steps(1.0, full=False)), left)
        steps_to_take = steps(factor, full=False)
    steps_to_take = tuple(
        step.with_cost(step.cost.with_share(share)) for step in steps_to_take if step.cost is not None
    )
    notes = list(_notes(seconds, lengths, share, small=small))
    smallest = seconds - left + sum(cost.smallest() for cost in _costs(steps_to_take))
    if smallest > seconds:
        notes.insert(1, f"this budget cannot be kept here: the smallest possible is {_minutes(smallest)}")
    return Plan(TITLE, tuple(notes), steps_to_take, budget=seconds, spent=spent)


def _costs(steps: Iterable[Step]) -> list[Cost]:
    return [step.cost for step in steps if step.cost is not None]


def _minutes(seconds: float) -> str:
    return f"about {math.ceil(seconds / 6) / 10:g} minutes"


def _shortened(method: str, length: Length) -> dict[str, Any]:
    settings: dict[str, Any] = {"epochs": length.epochs}
    if length.limit is not None:
        settings["limit"] = length.limit
    if method == "simsiam":
        settings["knn_every"] = max(1, length.epochs // KNN_LOOKS)
    return settings


def _notes(seconds: float, lengths: Mapping[str, Length], share: float, *, small: bool) -> Iterator[str]:
    """What was made smaller, and by how much."""
    budget = f"{seconds / 60:g} minutes"
    yield f"made for a budget of {budget}; without --budget everything has the assignment's size"
    for method, length in lengths.items():
        images = f"{length.limit or length.images:,} of {length.images:,} images"
        full = f"{length.share():.1%} of the assignment's {length.full_epochs} epochs on all of them"
        yield f"{method}: at most {length.epochs} epochs on {images}, {full}; the clock may end it before"
        if small and (cheap := configs.config_class(method).on_a_cpu):
            changed = ", ".join(f"{name}={value}" for name, value in cheap.items())
            yield f"{method} has settings for a CPU: {changed}"
    if share < 1:
        yield "evaluations take fewer images, the fewer the less time is left"
