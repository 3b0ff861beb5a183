"""The commands of the assignment, method by method."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genssl import config as configs
from genssl.runs import run_name
from genssl.studies.plan import Step

NAMED = ("data", "epochs", "limit", "seed", "knn_every")  # settings that have options of their own
LIKELIHOOD_IMAGES = 1000
BOUND_IMAGES, BOUND_TIMES = 256, 50
SWEPT_IMAGES = 128  # a noise level
UNASKED = ("--yes",)  # of a training: the plan was asked for as a whole
SAMPLES = 512  # whose fidelity is measured on a CPU


@dataclass(frozen=True)
class Part:
    """One method's training: on which data, with which settings."""

    method: str
    data: str
    settings: dict[str, Any]

    def options(self, other: str = "--set") -> list[str]:
        """The settings as options; those without one of their own as `other`: --set, or --base of ablate."""
        words = []
        for name, value in {"data": self.data, **self.settings}.items():
            text = "none" if value is None else str(value)
            named = [f"--{name.replace('_', '-')}", text]
            words += named if name in NAMED else [other, f"{name}={text}"]
        return words


def steps_of(vae: Part, ddpm: Part, simsiam: Part, *, share: float, device: str) -> tuple[Step, ...]:
    """Every step, `share` telling how many of the usual images the evaluations take."""
    steps = [*_vae(vae, share), *_ddpm(ddpm, share), *_simsiam(simsiam, share), *_quality(share)]
    return tuple(step.on(device) for step in steps)


def _vae(part: Part, share: float) -> Iterator[Step]:
    yield _training(part, "train the VAE (figures 1 to 3)")
    yield _step("draw samples of the VAE (figure 4)", "vae/eval/sample.json", "sample", "vae")
    yield _step("profile the latents (figure 5)", "vae/eval/latent-profile.json", "latent-profile", "vae")
    yield _step("interpolate (figure 6)", "vae/eval/interpolate.json", "interpolate", "vae")
    yield _step("reconstruct", "vae/eval/reconstruct.json", "reconstruct", "vae")
    images = _at_least(100, LIKELIHOOD_IMAGES * share)
    yield _step(
        "estimate the likelihood", "vae/eval/importance-ll.json", "importance-ll", "vae", "--limit", images
    )


def _ddpm(part: Part, share: float) -> Iterator[Step]:
    yield _training(part, "train the DDPM (figures 7 and 8)")
    images = _at_least(32, SWEPT_IMAGES * share)
    levels = "16:256:16" if share == 1 else "16:256:48"
    yield _step(
        "noise images and come back (figure 9)", "ddpm/eval/noise-levels.json",
        "reconstruct", "ddpm", "--sweep", levels, "--queries", images,
    )  # fmt: skip
    yield _step("draw samples of the DDPM (figure 10)", "ddpm/eval/sample.json", "sample", "ddpm")
    images = _at_least(32, BOUND_IMAGES * share)
    yield _step(
        "bound the likelihood", "ddpm/eval/bits-per-dim.json",
        "bits-per-dim", "ddpm", "--limit", images, "--t-samples", BOUND_TIMES,
    )  # fmt: skip


def _simsiam(part: Part, share: float) -> Iterator[Step]:
    yield _training(part, "train SimSiam")
    limits: list[object] = ["--limit", part.settings["limit"]] if "limit" in part.settings else []
    if share < 1:
        limits += ["--test-limit", _at_least(500, 10_000 * share)]
    yield _step(
        "classify by nearest neighbours", "simsiam/eval/knn-eval.json", "knn-eval", "simsiam", *limits
    )
    yield _step(
        "classify by a linear layer", "simsiam/eval/linear-eval.json", "linear-eval", "simsiam", *limits
    )
    for title, setting, change in (
        ("train without stop-gradient (figure 11)", "stop_gradient", ["--no-stopgrad"]),
        ("train without predictor (figure 12)", "predictor", ["--predictor", "identity"]),
        ("train with a wider projector (figure 13)", "projector_dim", ["--proj-dim", "4096"]),
    ):
        config = configs.make("simsiam", {**part.settings, "data": part.data})
        folder = f"ablate-{run_name(config, None)}-{setting}"
        words = ("ablate", "simsiam", *change, *part.options("--base"))
        yield Step(title, words, f"{folder}/ablate.json", how=UNASKED)


def _quality(share: float) -> Iterator[Step]:
    n: list[object] = ["-n", _at_least(64, SAMPLES * share)] if share < 1 else []
    for method, title in (("vae", "the VAE's"), ("ddpm", "the DDPM's")):
        yield _step(f"measure {title} samples", f"{method}/eval/fidelity.json", "fidelity", method, *n)
    yield _step(
        "compare both (question 2.2 d)", "compare-vae-ddpm/compare.json", "compare", "vae", "ddpm", *n
    )


def _training(part: Part, title: str) -> Step:
    words = ("train", part.method, *part.options())
    return Step(title, words, f"{part.method}/model.safetensors", trains=part.method, how=UNASKED)


def _step(title: str, makes: str, *arguments: object) -> Step:
    return Step(title, tuple(str(argument) for argument in arguments), makes)


def _at_least(least: int, wanted: float) -> int:
    return max(least, round(wanted))
