"""The answer to each question."""

from collections.abc import Callable, Iterator
from functools import partial

from genssl.report.answers import ddpm, representations, vae
from genssl.report.answers.facts import Facts
from genssl.report.answers.language import Language
from genssl.report.answers.questions import Question

Sentences = Callable[[Facts, Language], Iterator[str]]
ANSWERS: dict[str, Sentences] = {
    "1.1": vae.gaussian,
    "1.2": vae.likelihood,
    "1.3 a": partial(vae.wall_clock, method="vae"),
    "1.3 b": partial(vae.progress_of_samples, method="vae"),
    "1.3 c": vae.reconstructions,
    "1.3 d": partial(vae.samples, method="vae"),
    "1.3 e": vae.latent_profile,
    "1.3 f": vae.interpolation,
    "2.1": ddpm.bound,
    "2.2 a": partial(vae.wall_clock, method="ddpm"),
    "2.2 b": partial(vae.progress_of_samples, method="ddpm"),
    "2.2 c": ddpm.noise_levels,
    "2.2 d": ddpm.vae_beside_ddpm,
    "2.3 a": ddpm.timesteps,
    "2.3 b": ddpm.features_of_unet,
    "3.1": representations.forward_pass,
    "3.2": representations.cosine,
    "3.3": representations.loss,
    "3.4": representations.stop_gradient,
    "3.5 a": representations.no_predictor,
    "3.5 b": representations.wider_projector,
    "3.5 c": representations.barlow_twins,
    "3.6": representations.heavy_augmentation,
    "3.7": representations.collapse,
    "3.8": representations.byol,
    "3.9": representations.asymmetry,
}


def answer(question: Question, facts: Facts, language: Language) -> list[str]:
    """The sentences that the measured numbers support; none where nothing was measured for the question.

    Numbers that a file lacks or that are none, which is reported as a problem, leave the question unanswered.
    """
    try:
        return list(ANSWERS[question.number](facts, language))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        kind = type(error).__name__
        facts.contents.problems.append(f"question {question.number}: its numbers cannot be used ({kind})")
        return []
