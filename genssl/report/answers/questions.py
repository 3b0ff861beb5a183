"""The questions of the assignment (IFT6135, 2023, assignment 3), in its order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from genssl.errors import UserError


@dataclass(frozen=True)
class Question:
    """A question of the assignment.

    Attributes:
        number: e.g. "1.3 a".
        english, french: what it asks, as a heading.
        code: modules of the answer in code, where the question asks for code.
    """

    number: str
    english: str
    french: str
    code: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Its place in a page."""
        return "question-" + self.number.replace(" ", "").replace(".", "-")


QUESTIONS = (
    Question("1.1", "The diagonal Gaussian", "La gaussienne diagonale", ("models/gaussian.py",)),
    Question("1.2", "The VAE and its likelihood", "Le VAE et sa vraisemblance", ("models/vae.py",)),
    Question("1.3 a", "VAE: wall clock of training", "VAE : temps d'entraînement"),
    Question("1.3 b", "VAE: samples while training", "VAE : échantillons au cours de l'entraînement"),
    Question("1.3 c", "VAE: reconstructions of test images", "VAE : reconstructions d'images de test"),
    Question("1.3 d", "VAE: samples at the end", "VAE : échantillons à la fin"),
    Question("1.3 e", "VAE: latent profile of each class", "VAE : profil latent de chaque classe"),
    Question("1.3 f", "VAE: interpolation", "VAE : interpolation"),
    Question("2.1", "Diffusion and its bound", "La diffusion et sa borne", ("models/diffusion.py",)),
    Question("2.2 a", "DDPM: wall clock of training", "DDPM : temps d'entraînement"),
    Question("2.2 b", "DDPM: samples while training", "DDPM : échantillons au cours de l'entraînement"),
    Question("2.2 c", "DDPM: images noised and brought back", "DDPM : images bruitées puis reconstruites"),
    Question("2.2 d", "DDPM: samples, beside the VAE's", "DDPM : échantillons, comparés à ceux du VAE"),
    Question("2.3 a", "DDPM: the number of steps T", "DDPM : le nombre de pas T"),
    Question("2.3 b", "Other uses of the U-Net's features", "Autres usages des représentations du U-Net"),
    Question("3.1", "SimSiam's forward pass", "La passe avant de SimSiam", ("models/simsiam.py",)),
    Question("3.2", "Cosine similarity", "La similarité cosinus", ("models/losses.py",)),
    Question("3.3", "SimSiam's loss", "La perte de SimSiam", ("models/losses.py",)),
    Question("3.4", "With and without the stop-gradient", "Avec et sans stop-gradient"),
    Question("3.5 a", "The predictor as an identity", "Le prédicteur remplacé par l'identité"),
    Question("3.5 b", "A wider projector", "Un projecteur plus large"),
    Question("3.5 c", "Does Barlow Twins behave the same?", "Barlow Twins se comporte-t-il de même ?"),
    Question("3.6", "Heavy augmentation, and DSSL", "Augmentations lourdes, et DSSL"),
    Question("3.7", "Avoiding collapse: VICReg", "Éviter l'effondrement : VICReg"),
    Question("3.8", "BYOL and SimSiam", "BYOL et SimSiam"),
    Question("3.9", "Why asymmetry", "Pourquoi l'asymétrie"),
)  # fmt: skip
NUMBERS = tuple(question.number for question in QUESTIONS)


def select(only: Sequence[str], skip: Sequence[str]) -> tuple[str, ...]:
    """The numbers of the questions that are asked for.

    Args:
        only: questions such as "2.3b" or "2.3 b", or all parts of one, such as "2.3" or "3"; empty: all.
        skip: questions to leave out, likewise.

    Raises:
        UserError: one of them is no question, or none is left.
    """
    chosen = {number for text in only for number in _matching(text, "--only")} if only else set(NUMBERS)
    chosen -= {number for text in skip for number in _matching(text, "--skip")}
    if not chosen:
        raise UserError("--only and --skip leave no question")
    return tuple(number for number in NUMBERS if number in chosen)


def _matching(texts: str, option: str) -> list[str]:
    """The questions of a text such as "2.3b,3.4"."""
    result = []
    for text in texts.split(","):
        asked = _parts(text)
        matching = [number for number in NUMBERS if asked and _parts(number)[: len(asked)] == asked]
        if not matching:
            raise UserError(
                f"{option} {text.strip() or texts!r} is no question; there are {', '.join(NUMBERS)}"
            )
        result += matching
    return result


def _parts(text: str) -> list[str]:
    """["2", "3", "b"] of "2.3 b" or "2.3b"; empty where it is no question."""
    compact = re.sub(r"\s", "", text).lower()
    match = re.fullmatch(r"(\d)(?:\.(\d)(?:\.?([a-f]))?)?", compact)
    return [part for part in match.groups() if part] if match else []
