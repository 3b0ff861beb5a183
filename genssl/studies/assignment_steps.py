"""The steps of the assignment: what its report needs, in the order in which it can be made.

The assignment is IFT6135's third (2023): a VAE and a DDPM on SVHN, SimSiam and its relatives on CIFAR-10.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from genssl import config as configs
from genssl.eval.noise_sweep import BANK, higher_levels, network_calls
from genssl.models.ddpm import FAST_STEPS
from genssl.paths import LONGEST_STUDY
from genssl.runs import run_name
from genssl.settings import Config
from genssl.studies import measures
from genssl.studies.ablate import arm_name
from genssl.studies.plan import Cost, Size, Step, evaluation

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
LABELED, PROBED = 5000, 2000  # images that the features of question 2.3 b are tried on
WEIGHTS = 100  # importance samples of an image
TIMESTEPS = 1000
OTHER_TIMESTEPS = (500, 1500)  # of question 2.3 a
HEAVIER = 6  # operations of RandAugment, in place of 2, in question 3.6
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
MEASURING_CALLS = (  # of a DDPM by a comparison, but for the samples whose fidelity is measured
    measures.SAMPLES_SHOWN * TIMESTEPS
    + measures.BOUND_IMAGES * measures.BOUND_TIMES
    + measures.SAMPLES_TIMED * FAST_STEPS
)

OF_VAE = ("1.1", "1.2", "1.3 a", "1.3 b", "1.3 c", "1.3 d", "1.3 e", "1.3 f", "2.2 d", "2.3 b")
OF_DDPM = ("2.1", "2.2 a", "2.2 b", "2.2 c", "2.2 d", "2.3 b")
OF_SIMSIAM = ("3.1", "3.2", "3.3", "3.4", "3.5 a", "3.5 b", "3.5 c", "3.8", "3.9")


@dataclass(frozen=True)
class Part:
    """The trainings of one kind: on which data, with which settings.

    Attributes:
        method: what is trained.
        data: what it learns.
        settings: those that differ from the defaults.
        images_per_second: of training, in a trial; None: it is not known.
        seconds: that each training takes.
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

    @property
    def config(self) -> Config:
        """The settings of its baseline."""
        return configs.make(self.method, {**self.settings, "data": self.data})

    def cost(self, seconds: float = START, *, calls: float = 0, scalable: float = 0, size: Size) -> Cost:
        """What an evaluation is expected to take.

        Args:
            seconds: beside network calls, on the machine of REFERENCE.
            calls: of the network, each on one image, at any size.
            scalable: calls that come on top at full size.
            size: how the evaluation is made smaller.
        """
        return Cost(self.seconds_of(seconds, calls), self.seconds_of(0, scalable), sizes=(size,))

    def training(self, seconds: float = TRAINING, calls: float = 0, trainings: int = 1) -> Cost:
        """What trainings are expected to take; `seconds` and `calls` are those beyond their clock."""
        planned, group = trainings * self.seconds, f"{self.method} {self.settings.get('epochs')}"
        fixed = self.seconds_of(seconds, calls)
        return Cost(fixed, planned_seconds=planned, has_clock=True, group=group, trainings=trainings)

    def seconds_of(self, seconds: float, calls: float = 0) -> float:
        """Seconds on this machine, of network calls and of other work."""
        # a training step costs about three forward passes, and with two views per image six
        passes = 3 if self.method in {"vae", "ddpm"} else 6
        in_calls = calls / (passes * self.images_per_second) if self.images_per_second else 0.0
        return self.slowness * seconds + in_calls

    def measured(self, runs: int) -> tuple[float, float]:
        """Seconds and network calls to measure self-supervised runs."""
        bank = self.settings.get("limit") or 5 * TEST_IMAGES
        return TRAINING + runs * PROBE, runs * (bank + TEST_IMAGES)


def steps_of(
    parts: Mapping[str, Part],
    *,
    device: str,
    questions: Sequence[str],
    full: bool = True,
    samples: int = SAMPLES,
) -> tuple[Step, ...]:
    """The steps of some questions, at their full size.

    Args:
        parts: as named in `assignment.SHARES`.
        device: as in --device.
        questions: their numbers; a step that is for none of them is left out.
        full: the sweep takes all noise levels; else it takes fewer.
        samples: of each model, whose fidelity is measured.
    """
    speed = parts["vae"].images_per_second
    slowness = max(1.0, REFERENCE / (speed or REFERENCE))
    parts = {name: replace(part, slowness=slowness) for name, part in parts.items()}
    steps = [
        *_vae(parts["vae"]),
        *_ddpm(parts["ddpm"], full),
        *_quality(parts["vae"], parts["ddpm"], samples),
        *_timesteps(parts["ddpm"], parts["ddpm-timesteps"], samples),
        *_simsiam(parts["simsiam"]),
        *_relatives(parts),
    ]
    if speed is None:
        steps = [replace(step, cost=None) for step in steps]
    return tuple(step.on(device) for step in steps if set(step.questions) & set(questions))


def _vae(part: Part) -> Iterator[Step]:
    yield _training(part, "train the VAE (figures 1 to 3)", OF_VAE)
    for seconds, title, command, question in (
        (0.1 * START, "draw samples of the VAE (figure 4)", "sample", "1.3 d"),
        (1.5 * START, "profile the latents (figure 5)", "latent-profile", "1.3 e"),
        (0.1 * START, "interpolate (figure 6)", "interpolate", "1.3 f"),
        (START, "reconstruct", "reconstruct", "1.3 c"),
    ):
        yield _evaluation((question,), title, command, "vae").with_cost(Cost(part.seconds_of(seconds)))
    images = Size("--limit", LIKELIHOOD_IMAGES, 100)
    likelihood = _evaluation(
        ("1.1", "1.2"), "estimate the likelihood", "importance-ll", "vae", "--limit", images.full
    )
    yield likelihood.with_cost(part.cost(scalable=WEIGHTS * images.full, size=images))


def _ddpm(part: Part, full: bool) -> Iterator[Step]:
    cost = part.training(calls=PREVIEW_CALLS)
    yield _training(part, "train the DDPM (figures 7 and 8)", OF_DDPM).with_cost(cost)
    yield _sweep(part, full)
    drawing = _evaluation(
        ("2.2 d",), "draw samples of the DDPM (figure 10)", "sample", "ddpm", "--sampler", "ancestral"
    )
    yield drawing.with_cost(part.cost(scalable=SHOWN * TIMESTEPS, size=Size("-n", SHOWN, 8)))
    images = Size("--limit", BOUND_IMAGES, 32)
    limits = ("--limit", images.full, "--t-samples", BOUND_TIMES)
    bound = _evaluation(("2.1",), "bound the likelihood", "bits-per-dim", "ddpm", *limits)
    yield bound.with_cost(part.cost(scalable=BOUND_TIMES * images.full, size=images))


def _sweep(part: Part, full: bool) -> Step:
    levels = FINE if full else COARSE
    until = TIMESTEPS if full else LAST_COARSE_LEVEL
    images = Size("--queries", SWEPT_IMAGES, 32)
    sweep = _evaluation(
        ("2.2 c",), "noise images and come back (figure 9)", "reconstruct", "ddpm",
        "--sweep", f"{levels.start}:{levels.stop - 1}:{levels.step}", "--until", until,
        "--queries", images.full, *(() if full else ("--limit", FEW_AMONG)),
    )  # fmt: skip
    # As if t* were not reached: what is left over then goes to the next steps
    most = [*levels, *higher_levels(levels[-1], until)]
    rows, among = network_calls(most, 0), ENCODING_CALLS * ((SWEPT_AMONG if full else FEW_AMONG) + BANK)
    calls = network_calls(most, images.full) - rows + ENCODING_CALLS * len(most) * images.full
    return sweep.with_cost(part.cost(2 * START, calls=rows + among, scalable=calls, size=images))


def _quality(vae: Part, ddpm: Part, samples: int) -> Iterator[Step]:
    images = Size("-n", samples, 64)
    for part, title, calls, questions in (
        (vae, "the VAE's", 1, ("1.3 d", "2.2 d")),
        (ddpm, "the DDPM's", FAST_STEPS, ("2.2 d",)),
    ):
        step = _evaluation(questions, f"measure {title} samples", "fidelity", part.method)
        yield step.with_cost(part.cost(4 * START, scalable=calls * samples, size=images))
    yield _comparison(("2.2 d",), "compare both", ["vae", "ddpm"]).with_cost(
        ddpm.cost(6 * START, calls=MEASURING_CALLS, scalable=FAST_STEPS * samples, size=images)
    )
    # Images of three encoders: the DDPM, the same untrained, and the VAE
    probed, labeled = ("--test-limit", PROBED), Size("--limit", LABELED, 500)
    probe = _evaluation(
        ("2.3 b",), "classify from the features", "probe", "ddpm",
        "--beside", "vae", "--limit", labeled.full, *probed,
    )  # fmt: skip
    yield probe.with_cost(
        ddpm.cost(5 * PROBE, calls=3 * PROBED, scalable=3 * ENCODING_CALLS * LABELED, size=labeled)
    )


def _timesteps(main: Part, part: Part, samples: int) -> Iterator[Step]:
    """DDPMs of other numbers of steps, with the same variances and with variances scaled to them."""
    arms = [
        {"timesteps": count} | ({"scale_betas": True} if scaled else {})
        for count in OTHER_TIMESTEPS
        for scaled in (False, True)
    ]
    runs = 1 + len(arms)
    cost = part.training(runs * TRAINING, runs * (PREVIEW_CALLS + MEASURING_CALLS), runs)
    title = "train DDPMs of 500, 1,000 and 1,500 steps"
    words = _sets(timesteps=OTHER_TIMESTEPS, scale_betas=("false", "true"))
    yield _ablation(part, ("2.3 a",), title, ("timesteps", "scale_betas"), words, cost)
    # A DDPM that was trained before with these very settings is the baseline
    is_trained = part.settings == main.settings
    baseline = "ddpm" if is_trained else arm_name(part.config, {})
    images = Size("-n", samples, 64)
    step = _comparison(
        ("2.3 a",), "compare their samples", [baseline, *(arm_name(part.config, arm) for arm in arms)]
    )
    yield step.with_cost(part.cost(4 * START, scalable=runs * FAST_STEPS * samples, size=images))


def _simsiam(part: Part) -> Iterator[Step]:
    yield _training(part, "train SimSiam", OF_SIMSIAM)
    limit = part.settings.get("limit")
    limits: list[object] = [] if limit is None else ["--limit", limit]
    bank, images = limit or 5 * TEST_IMAGES, Size("--test-limit", TEST_IMAGES, 500)
    for title, command, seconds in (
        ("classify by nearest neighbors", "knn-eval", START),
        ("classify by a linear layer", "linear-eval", START + PROBE),
    ):
        step = _evaluation(("3.4",), title, command, "simsiam", *limits)
        yield step.with_cost(part.cost(seconds, calls=bank, scalable=images.full, size=images))
    for title, setting, words, runs, questions in (
        # the first of them measures the baseline, too
        (
            "train without stop-gradient (figure 11)", "stop_gradient", ["--no-stopgrad"], 2,
            ("3.1", "3.4", "3.9"),
        ),
        (
            "train without predictor (figure 12)", "predictor", ["--predictor", "identity"], 1,
            ("3.5 a", "3.9"),
        ),
        (
            "train with a wider projector (figure 13)", "projector_dim", ["--proj-dim", "4096"], 1,
            ("3.5 b", "3.5 c"),
        ),
    ):  # fmt: skip
        yield _ablation(part, questions, title, (setting,), words, part.training(*part.measured(runs)))


def _relatives(parts: Mapping[str, Part]) -> Iterator[Step]:
    """What the assignment asks beside SimSiam: Barlow Twins, DSSL, VICReg and BYOL."""
    wider = ["--proj-dim", "4096"]
    heavier = _sets(naive=("false", "true"), heavy_operations=(2, HEAVIER))
    terms = _sets(variance=(25, 0), covariance=(1, 0))
    for name, title, changed, words, trainings, questions in (
        ("barlow-twins", "train Barlow Twins and a wider projector", ["projector_dim"], wider, 2, ("3.5 c",)),
        (
            "dssl", "train with heavy views, with and without DSSL", ["heavy_operations", "naive"], heavier,
            4, ("3.6", "3.9"),
        ),
        (
            "vicreg", "train VICReg with and without its terms", ["covariance", "variance"], terms, 4,
            ("3.7",),
        ),
    ):  # fmt: skip
        cost = parts[name].training(*parts[name].measured(trainings), trainings)
        yield _ablation(parts[name], questions, title, changed, words, cost)
    byol = parts["byol"]
    yield _training(byol, "train BYOL", ("3.8",))
    size = Cost(byol.seconds_of(*byol.measured(2)))
    yield _comparison(("3.8",), "compare BYOL with SimSiam", ["byol", "simsiam"]).with_cost(size)


def _training(part: Part, title: str, questions: tuple[str, ...]) -> Step:
    words = ("train", part.method, *part.options())
    makes = f"{part.method}/model.safetensors"
    return Step(
        title, words, makes, trains=part.method, how=UNASKED, cost=part.training(), questions=questions
    )


def _evaluation(questions: tuple[str, ...], title: str, command: str, method: str, *options: object) -> Step:
    return replace(evaluation(title, command, method, *options), questions=questions)


def _sets(**values: Sequence[object]) -> list[str]:
    """The options --set of every value of some settings."""
    return [
        word for name, all_values in values.items() for v in all_values for word in ("--set", f"{name}={v}")
    ]


def _ablation(
    part: Part,
    questions: tuple[str, ...],
    title: str,
    changed: Sequence[str],
    words: Sequence[str],
    cost: Cost,
) -> Step:
    """An ablation by the options `words`, which change the settings `changed`, in the order of its arms."""
    folder = "-".join(["ablate", run_name(part.config, None), *changed])[:LONGEST_STUDY]
    line = ("ablate", part.method.replace("_", "-"), *words, *part.options("--base"))
    return Step(title, line, f"{folder}/ablate.json", how=UNASKED, cost=cost, questions=questions)


def _comparison(questions: tuple[str, ...], title: str, runs: Sequence[str]) -> Step:
    folder = "-".join(["compare", *runs])[:LONGEST_STUDY]
    return Step(title, ("compare", *runs), f"{folder}/compare.json", questions=questions)
