"""Problem 2: the DDPM.

Every function gives the sentences that the measured numbers support; none where nothing was measured.
"""

import math
from collections.abc import Iterator, Mapping

from genssl.report.answers.facts import Arm, Difference, Facts, Share, arm_with, measure_of
from genssl.report.answers.language import Language
from genssl.report.answers.vae import samples
from genssl.report.format import is_number
from genssl.report.load import Record

IMPRECISE = 0.5  # precision below which recall says little: samples that are spread out cover everything
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}  # the schedule of `_signal_left`
TOO_MUCH_SIGNAL = 0.01  # share of the image left at t = T above which N(0, I) is no start


def bound(facts: Facts, language: Language) -> Iterator[str]:
    """2.1: the variational bound of the DDPM, and at which times it costs bits."""
    values = facts.evaluation("ddpm", "bits-per-dim")
    if values is None or not is_number(values.get("bits_per_dim")):
        return
    bits, error = values["bits_per_dim"], values.get("standard_error")
    yield language.choose(
        f"The bound costs {language.number(bits)} ± {language.number(error, 2)} bits per dimension on "
        f"{language.number(values.get('images'))} test images; uniform bytes cost 8.",
        f"La borne coûte {language.number(bits)} ± {language.number(error, 2)} bits par dimension sur "
        f"{language.number(values.get('images'))} images de test ; des octets uniformes en coûtent 8.",
    )
    by_time = values.get("denoising_bits_per_dim_by_t")
    total = values.get("denoising_bits_per_dim")
    if isinstance(by_time, Mapping) and by_time and total:
        times, most = max(by_time.items(), key=lambda item: item[1])
        share = language.percent(most / total)
        if times == next(iter(by_time)):
            yield language.choose(
                f"{share} of its denoising terms comes from the least noise, t = {times}: details cost most.",
                f"{share} de ses termes de débruitage vient du moindre bruit, t = {times} : les détails "
                "coûtent le plus.",
            )
        else:
            yield language.choose(
                f"The largest part of its denoising terms, {share}, comes from t = {times}: not details, "
                "structure.",
                f"La plus grande part de ses termes de débruitage, {share}, vient de t = {times} : non les "
                "détails, mais la structure.",
            )


def noise_levels(facts: Facts, language: Language) -> Iterator[str]:
    """2.2 c: at which t* an image is lost, by pixels, by features and by its class."""
    values = facts.evaluation("ddpm", "noise-levels")
    levels = values.get("levels") if values is not None else None
    if values is None or not isinstance(levels, list) or not levels:
        return
    for name, english, french in (
        ("pixels", "by pixels", "par les pixels"),
        ("features", "by features", "par les représentations"),
        ("class", "by their class", "par leur classe"),
    ):
        crossing = values.get(f"t_star_{name}")
        if isinstance(crossing, Mapping):
            yield _crossing(dict(crossing), levels[-1]["t_prime"], (english, french), language)
    first, last = levels[0], levels[-1]
    numbers = [language.number(level.get("psnr_db")) for level in (first, last)]
    yield language.choose(
        f"From t' = {first['t_prime']} to {last['t_prime']} the PSNR of what comes back falls from "
        f"{numbers[0]} to {numbers[1]} dB.",
        f"De t' = {first['t_prime']} à {last['t_prime']}, le PSNR des images reconstruites passe de "
        f"{numbers[0]} à {numbers[1]} dB.",
    )


def _crossing(crossing: Record, last: int, name: tuple[str, str], language: Language) -> str:
    if not is_number(crossing.get("level")):
        return language.choose(
            f"Recognized {name[0]}, images are not lost up to t' = {last}.",
            f"Reconnues {name[1]}, les images ne sont pas perdues jusqu'à t' = {last}.",
        )
    level, ends = crossing["level"], language.interval(crossing.get("low"), crossing.get("high"))
    return language.choose(
        f"Recognized {name[0]}, half of what is above chance is lost at t* = {level:.0f} {ends}.",
        f"Reconnues {name[1]}, la moitié de ce qui dépasse le hasard est perdue à t* = {level:.0f} {ends}.",
    )


def vae_beside_ddpm(facts: Facts, language: Language) -> Iterator[str]:
    """2.2 d: which model's samples are nearer, sharper and more varied."""
    yield from samples(facts, language, "ddpm")
    for measure, what in (
        ("frechet_distance", ("nearer to real images", "plus proches des images réelles")),
        ("recall", ("more varied", "plus variés")),
    ):
        rows = facts.measured_alike(("vae", "ddpm"), measure)
        known = {name: row for name, row in rows.items() if row is not None and is_number(row.get("low"))}
        if len(known) == 2:
            yield _better(known, measure, what, language)
    for method in ("vae", "ddpm"):
        precise = facts.measure(method, "precision")
        if precise is not None and precise["samples"] < IMPRECISE:
            yield language.choose(
                f"Recall says little of the {method.upper()}: most of its samples lie outside the real "
                "images.",
                f"Le rappel dit peu du {method.upper()} : la plupart de ses échantillons sont hors des "
                "images réelles.",
            )


def _better(rows: Mapping[str, Record], measure: str, what: tuple[str, str], language: Language) -> str:
    sign = -1 if measure == "frechet_distance" else 1
    better, worse = sorted(rows, key=lambda name: -sign * rows[name]["samples"])
    texts = [
        f"{language.number(rows[n]['samples'])} {language.interval(rows[n]['low'], rows[n]['high'])}"
        for n in (better, worse)
    ]
    apart = (
        rows[better]["high"] < rows[worse]["low"] if sign < 0 else rows[better]["low"] > rows[worse]["high"]
    )
    name = {"frechet_distance": ("Frechet distance", "distance de Fréchet"), "recall": ("recall", "rappel")}
    label = language.choose(*name[measure])
    if apart:
        return language.choose(
            f"The {better.upper()}'s samples are {what[0]} than the {worse.upper()}'s: {label} {texts[0]} "
            f"against {texts[1]}.",
            f"Les échantillons du {better.upper()} sont {what[1]} que ceux du {worse.upper()} : {label} "
            f"{texts[0]} contre {texts[1]}.",
        )
    return language.choose(
        f"Which model's samples are {what[0]} is not resolved: {label} {texts[0]} of the {better.upper()}, "
        f"{texts[1]} of the {worse.upper()}.",
        f"On ne peut dire de quel modèle les échantillons sont {what[1]} : {label} {texts[0]} pour le "
        f"{better.upper()}, {texts[1]} pour le {worse.upper()}.",
    )


def timesteps(facts: Facts, language: Language) -> Iterator[str]:
    """2.3 a: what T costs and gains."""
    arms = facts.ablation("ddpm", "timesteps")
    base = arms[0] if arms else None
    for arm in arms[1:]:
        if base is not None and arm.changes.keys() == {"timesteps"}:
            yield from _cost_of_steps(base, arm, language)
    study = facts.comparison("ddpm") if arms else None
    rows = study.values.get("fidelity") if study is not None else None
    arm_of = {str(run.get("run")): arm.name for arm in arms for run in arm.runs}
    measured = {
        arm_of.get(str(row.get("run")), str(row.get("run"))): distance
        for row in (rows if isinstance(rows, list) else [])
        if (distance := measure_of(row, "frechet_distance")) is not None and is_number(distance.get("low"))
    }
    if len(measured) > 1:
        yield from _distances(measured, language)
    short = arm_with(arms, timesteps=500)
    settings = facts.baseline_settings("ddpm", "timesteps")
    if short is not None and study is not None and LINEAR.items() <= settings.items():
        yield from _signal_left(language)


def _cost_of_steps(base: Arm, arm: Arm, language: Language) -> Iterator[str]:
    steps = language.number(arm.changes.get("timesteps"))
    speeds = [one.number("images_per_second") or 0.0 for one in (base, arm)]
    seconds = [one.number("ancestral_seconds") or 0.0 for one in (arm, base)]
    if all(speeds) and all(seconds):
        ratios = [language.as_long(a / b) for a, b in (speeds, seconds)]
        yield language.choose(
            f"With T = {steps} an image of training takes {ratios[0]} as with the baseline's T, and sampling "
            f"by every step {ratios[1]}.",
            f"Avec T = {steps}, par rapport à la référence, une image d'entraînement prend {ratios[0]}, et "
            f"l'échantillonnage pas à pas {ratios[1]}.",
        )


def _distances(measured: Mapping[str, Record], language: Language) -> Iterator[str]:
    best, *others = sorted(measured, key=lambda name: measured[name]["samples"])
    worst = others[-1]
    texts = [
        f"{language.number(measured[n]['samples'])} "
        f"{language.interval(measured[n]['low'], measured[n]['high'])}"
        for n in (best, worst)
    ]
    yield language.choose(
        f"By Frechet distance {best} is best with {texts[0]}, and {worst} is last with {texts[1]}.",
        f"Par la distance de Fréchet, {best} est le meilleur avec {texts[0]}, et {worst} le dernier avec "
        f"{texts[1]}.",
    )
    tied = [name for name in others if measured[name]["low"] <= measured[best]["high"]]
    if tied:
        yield language.choose(
            f"Not told apart from the best: {language.listed(tied)}.",
            f"Non distingués du meilleur : {language.listed(tied)}.",
        )
    else:
        yield language.choose(
            "The best is told apart from all others: its interval overlaps with none.",
            "Le meilleur se distingue de tous les autres : son intervalle n'en recouvre aucun.",
        )


def _signal_left(language: Language, steps: int = 500) -> Iterator[str]:
    """The closed form of the linear schedule from 1e-4 to 0.02: sqrt(prod(1 - beta))."""
    betas = [1e-4 + (0.02 - 1e-4) * i / (steps - 1) for i in range(steps)]
    signal = math.exp(0.5 * sum(math.log1p(-beta) for beta in betas))
    ending = ("nearly none", "presque rien")
    if signal > TOO_MUCH_SIGNAL:
        ending = (
            "so that N(0, I) is not where training ended",
            "si bien que N(0, I) ne convient pas au départ",
        )
    yield language.choose(
        f"With {steps} steps of the same variances the noisiest image still has {language.percent(signal)} "
        f"of the signal, {ending[0]}; scaled variances (scale_betas) remove that.",
        f"Avec {steps} pas de mêmes variances, l'image la plus bruitée garde {language.percent(signal)} du "
        f"signal, {ending[1]} ; des variances mises à l'échelle (scale_betas) y remédient.",
    )


def features_of_unet(facts: Facts, language: Language) -> Iterator[str]:
    """2.3 b: what the U-Net's features are worth for classification, by the share of labels."""
    values = facts.evaluation("ddpm", "probe")
    rows = values.get("compared") if values is not None else None
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    images = values.get("test_images", 0) if values is not None else 0
    fractions = sorted({row["fraction"] for row in rows if is_number(row.get("fraction"))})
    for fraction in fractions[:1] + fractions[1:][-1:]:
        yield from _ranking([row for row in rows if row["fraction"] == fraction], images, language)


def _ranking(rows: list[Record], images: float, language: Language) -> Iterator[str]:
    known = {str(row["what"]): row for row in rows if is_number(row.get("linear_accuracy"))}
    if not {"ddpm", "untrained ddpm"} <= known.keys():
        return
    order = sorted(known, key=lambda name: -known[name]["linear_accuracy"])
    texts = [
        f"{_feature(name, language)} {language.percent(known[name]['linear_accuracy'])}" for name in order
    ]
    share, labeled = (language.percent(rows[0]["fraction"]), language.number(rows[0].get("labeled")))
    yield language.choose(
        f"With {share} of the labels ({labeled}) a linear classifier reaches: {', '.join(texts)}.",
        f"Avec {share} des étiquettes ({labeled}), un classifieur linéaire atteint : {', '.join(texts)}.",
    )
    shares = {
        name: Share(row["linear_accuracy"], images, row.get("linear_std") or 0.0)
        for name, row in known.items()
    }
    gain = Difference.between(shares["untrained ddpm"], shares["ddpm"])
    if not gain.is_resolved:
        yield language.choose(
            "The trained U-Net's features are not told apart from the untrained one's.",
            "Les représentations du U-Net entraîné ne se distinguent pas de celles du U-Net non entraîné.",
        )
    elif gain.value > 0:
        yield language.choose(
            f"Learning to denoise gains {language.points(gain.value)} over the untrained U-Net.",
            f"Apprendre à débruiter apporte {language.points(gain.value)} par rapport au U-Net non entraîné.",
        )
    else:
        yield language.choose(
            f"Learning to denoise costs {language.points(gain.value)}: the untrained U-Net is better.",
            f"Apprendre à débruiter coûte {language.points(gain.value)} : sans entraînement, c'est mieux.",
        )


def _feature(name: str, language: Language) -> str:
    french = {
        "raw pixels": "pixels bruts",
        "untrained ddpm": "DDPM non entraîné",
        "ddpm": "DDPM",
        "vae": "VAE",
    }
    english = {"untrained ddpm": "untrained DDPM", "ddpm": "DDPM", "vae": "VAE"}
    return language.choose(english.get(name, name), french.get(name, name))
