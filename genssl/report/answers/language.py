"""Numbers and sentences of the assignment's report, in English or French."""

from dataclasses import dataclass
from typing import Any, Literal

from genssl.report import format

Code = Literal["en", "fr"]
THIN = "\u202f"  # what separates thousands, and stands before a percent sign, in French
# Times closer than this ratio are not told apart, as in `genssl ablate`
ALIKE = 1.25
DECIMAL_COMMA = str.maketrans({".": ",", ",": THIN})

# Headings and labels; what is missing here stays in English
FRENCH = {
    # of the page
    "Contents": "Sommaire",
    "Could not be read": "N'a pas pu être lu",
    "Runs": "Entraînements",
    "Measurements": "Mesures",
    "Results of each run": "Résultats de chaque entraînement",
    "Environment": "Environnement",
    "The questions": "Les questions",
    "missing": "manque",
    "question": "question",
    "Question": "Question",
    "Code": "Code",
    "shipped weights": "poids fournis",
    "The command": "La commande",
    "The command was not recorded.": "La commande n'a pas été enregistrée.",
    "The usual command; the one that was used is not recorded": "La commande habituelle ; celle qui a servi "
    "n'est "
    "pas enregistrée",
    "Not there yet. To make it:": "Pas encore fait. Pour le faire :",
    "Nothing was measured for this question yet.": "Rien n'a encore été mesuré pour cette question.",
    "No run was found.": "Aucun entraînement trouvé.",
    "Nothing was measured yet.": "Rien n'a encore été mesuré.",
    "Nothing was recorded.": "Rien n'a été enregistré.",
    "Large pictures are compressed again for this page; the originals lie beside their runs.": "Les grandes "
    "images "
    "sont recompressées pour cette page ; les originaux sont dans les dossiers des entraînements.",
    # figures of the assignment
    "Further figure": "Autre figure",
    "VAE: wall clock of training": "VAE : temps d'entraînement",
    "VAE: samples while training": "VAE : échantillons au cours de l'entraînement",
    "VAE: reconstructions of test images while training": "VAE : reconstructions d'images de test au cours "
    "de "
    "l'entraînement",
    "VAE: samples at the end": "VAE : échantillons à la fin",
    "VAE: mean latent code of each class": "VAE : code latent moyen de chaque classe",
    "VAE: interpolation": "VAE : interpolation",
    "DDPM: wall clock of training": "DDPM : temps d'entraînement",
    "DDPM: samples while training": "DDPM : échantillons au cours de l'entraînement",
    "DDPM: reconstructions from noise, and where images are lost": "DDPM : reconstructions depuis le bruit, "
    "et où "
    "les images se perdent",
    "DDPM: samples at the end": "DDPM : échantillons à la fin",
    "SimSiam with and without the stop-gradient": "SimSiam avec et sans stop-gradient",
    "SimSiam with the predictor as an identity": "SimSiam, le prédicteur remplacé par l'identité",
    "SimSiam with another width of the projector": "SimSiam avec une autre largeur du projecteur",
    "VAE and DDPM side by side": "Le VAE et le DDPM côte à côte",
    "DDPMs of other numbers of steps": "DDPM avec d'autres nombres de pas",
    "Samples of DDPMs of other numbers of steps": "Échantillons de DDPM avec d'autres nombres de pas",
    "Accuracy of the features by the share of labels": "Précision des représentations selon la part "
    "d'étiquettes",
    "Barlow Twins with another width of the projector": "Barlow Twins avec une autre largeur du projecteur",
    "Heavy views with and without DSSL": "Vues lourdes, avec et sans DSSL",
    "VICReg with and without its terms": "VICReg avec et sans ses termes",
    "BYOL and SimSiam side by side": "BYOL et SimSiam côte à côte",
    # names of numbers
    "method": "méthode",
    "data": "données",
    "epochs": "époques",
    "epochs trained": "époques d'entraînement",
    "trained on": "entraîné sur",
    "train images": "images d'entraînement",
    "test images": "images de test",
    "training time": "temps d'entraînement",
    "training": "entraînement",
    "images a second": "images par seconde",
    "held out": "mises de côté",
    "device": "appareil",
    "parameters": "paramètres",
    "images": "images",
    "kNN accuracy at the end": "précision kNN à la fin",
    "kNN accuracy": "précision kNN",
    "linear, test": "linéaire, test",
    "linear, train": "linéaire, entraînement",
    "output std": "écart-type des sorties",
    "rank": "rang",
    "scale": "échelle",
    "loss": "perte",
    "test loss": "perte de test",
    "sampling 64": "échantillonner 64",
    "16 by every step": "16 pas à pas",
    "run": "entraînement",
    "runs": "entraînements",
    "packages": "bibliothèques",
    "cores": "cœurs",
    "system": "système",
    "split": "partie",
    "samples": "échantillons",
    "precision": "précision",
    "recall": "rappel",
    "sharpness": "netteté",
    "active units": "dimensions actives",
    "network calls": "appels du réseau",
    "time": "temps",
}


@dataclass(frozen=True)
class Language:
    """What a report is written in.

    Attributes:
        code: "en" or "fr".
    """

    code: Code = "en"

    def choose(self, english: str, french: str) -> str:
        """The text of this language."""
        return french if self.code == "fr" else english

    def words(self, english: str) -> str:
        """A heading or label; as it is where there is no translation."""
        return FRENCH.get(english, english) if self.code == "fr" else english

    def number(self, value: Any, digits: int = 3) -> str:
        """A number; whole ones with separators of thousands."""
        return self.signs(format.number(value, digits))

    def percent(self, share: Any) -> str:
        """A share from 0 to 1, in percent."""
        return self.signs(format.percent(share))

    def points(self, difference: float) -> str:
        """A difference of two shares, in percentage points without a sign."""
        text = self.signs(f"{abs(100 * difference):.1f}")
        return text + self.choose(" points", " points")

    def seconds(self, value: Any) -> str:
        """A time."""
        return self.signs(format.seconds(value))

    def times(self, ratio: float) -> str:
        """A ratio, e.g. 2.1 times."""
        return f"{self.number(ratio, 2)} {self.choose('times', 'fois')}"

    def as_long(self, ratio: float) -> str:
        """A ratio of times: about the same within ALIKE."""
        if 1 / ALIKE < ratio < ALIKE:
            return self.choose("about as long", "à peu près le même temps")
        return self.choose(f"{self.times(ratio)} as long", f"{self.times(ratio)} le temps")

    def interval(self, low: Any, high: Any, digits: int = 3) -> str:
        """Both ends of a 95 % interval, in parentheses."""
        return f"({self.number(low, digits)} {self.choose('to', 'à')} {self.number(high, digits)})"

    def listed(self, items: list[str]) -> str:
        """Items with commas and an "and"."""
        if len(items) < 2:
            return "".join(items)
        return f"{', '.join(items[:-1])} {self.choose('and', 'et')} {items[-1]}"

    def signs(self, text: str) -> str:
        """Numbers of an English text with the decimal sign and spaces of this language."""
        if self.code == "en":
            return text
        return text.translate(DECIMAL_COMMA).replace(" %", f"{THIN}%")
