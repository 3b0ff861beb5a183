"""Problem 1, the VAE, and what question 2.2 asks of the DDPM in the same words.

Every function gives the sentences that the measured numbers support; none where nothing was measured.
"""

import math
from collections.abc import Iterator, Mapping

from genssl.report.answers.facts import Facts, curve, held_out, measure_of
from genssl.report.answers.language import Language
from genssl.report.format import is_number
from genssl.report.load import Record

EVEN = 0.1  # relative difference below which both halves of a training took the same time
SMOOTH = 2.0  # times the mean step: below, no step of an interpolation is a jump
WEAK = 0.05  # separation of classes along a latent dimension that says little of the class
MANY_TIMES = 2  # from which on a ratio is no percentage
FEW_WEIGHTS = 5  # effective importance samples below which the bound is loose


def gaussian(facts: Facts, language: Language) -> Iterator[str]:
    """1.1: the divergence of q(z | x) from the prior."""
    run = facts.run("vae")
    of, divergence = held_out(run, "kl")
    dimensions = run.config.get("z_dim") if run is not None else None
    if not divergence or not is_number(dimensions) or dimensions is None:
        return
    value = divergence[-1][1]
    yield language.choose(
        f"At the end of training, KL(q(z|x) || N(0, I)) is {language.number(value)} nats per {of[0]} image, "
        f"{language.number(value / dimensions)} per latent dimension.",
        f"À la fin de l'entraînement, KL(q(z|x) || N(0, I)) vaut {language.number(value)} nats par image "
        f"{of[1]}, soit {language.number(value / dimensions)} par dimension latente.",
    )


def likelihood(facts: Facts, language: Language) -> Iterator[str]:
    """1.2: the importance-weighted estimate and the bound that it must exceed."""
    values = facts.evaluation("vae", "importance-ll")
    if values is None or not is_number(values.get("gap_to_elbo_nats")):
        return
    gap, samples, images = values["gap_to_elbo_nats"], values.get("k"), values.get("images")
    numbers = [language.number(values.get(name), 5) for name in ("log_p_nats", "elbo_nats")]
    yield language.choose(
        f"With {language.number(samples)} importance samples, log p(x) is {numbers[0]} nats per image over "
        f"{language.number(images)} test images; the ELBO is {numbers[1]}.",
        f"Avec {language.number(samples)} échantillons d'importance, log p(x) vaut {numbers[0]} nats par "
        f"image sur {language.number(images)} images de test ; l'ELBO vaut {numbers[1]}.",
    )
    if gap >= 0:
        yield language.choose(
            f"The estimate exceeds the ELBO by {language.number(gap)} nats, as Jensen's inequality requires.",
            f"L'estimation dépasse l'ELBO de {language.number(gap)} nats, comme l'exige l'inégalité de "
            "Jensen.",
        )
    else:
        yield language.choose(
            f"The estimate is {language.number(-gap)} nats below the ELBO, which is possible only by chance.",
            f"L'estimation est {language.number(-gap)} nats sous l'ELBO, ce qui n'est possible que par "
            "hasard.",
        )
    effective = values.get("effective_sample_size_median")
    if is_number(effective) and effective is not None and effective < FEW_WEIGHTS:
        yield language.choose(
            "For half of the images a single sample dominates (median effective size "
            f"{language.number(effective)}), so that log p(x) is still underestimated.",
            "Pour la moitié des images, un seul échantillon domine (taille effective médiane "
            f"{language.number(effective)}) : log p(x) reste donc sous-estimé.",
        )


def wall_clock(facts: Facts, language: Language, method: str) -> Iterator[str]:
    """1.3 a, 2.2 a: time over epochs, whether it grows linearly, and the DDPM's beside the VAE's."""
    run = facts.run(method)
    times = [seconds for _, seconds in curve(run, "seconds")]
    if run is None or not times:
        return
    speed = language.number(run.images_per_second)
    yield language.choose(
        f"{run.progress} epochs took {language.seconds(times[-1])}, at {speed} images per second "
        f"({run.origin.get('device', 'unknown device')}).",
        f"{language.signs(run.progress).replace(' of ', ' sur ')} époques ont pris "
        f"{language.seconds(times[-1])}, à {speed} images par seconde "
        f"({run.origin.get('device', 'appareil inconnu')}).",
    )
    yield from _linearity(times, language)
    vae = facts.run("vae")
    if method != "vae" and vae is not None and vae.images_per_second and run.images_per_second:
        ratio = vae.images_per_second / run.images_per_second
        slower = ratio >= 1
        text = language.times(ratio if slower else 1 / ratio)
        yield language.choose(
            f"An image takes {text} as long as in the VAE's training."
            if slower
            else f"An image of the VAE's training takes {text} as long.",
            f"Une image prend {text} le temps qu'elle prend pour le VAE."
            if slower
            else f"Une image prend {text} plus de temps pour le VAE.",
        )


def _linearity(times: list[float], language: Language) -> Iterator[str]:
    middle = len(times) // 2
    if len(times) < 4 or times[middle - 1] <= 0:
        return
    first = times[middle - 1] / middle
    ratio = (times[-1] - times[middle - 1]) / (len(times) - middle) / first
    if abs(ratio - 1) < EVEN:
        yield language.choose(
            "An epoch took about as long in the second half as in the first: wall clock grows linearly.",
            "Une époque a pris à peu près autant de temps dans les deux moitiés : le temps croît "
            "linéairement.",
        )
    else:
        yield language.choose(
            f"An epoch of the second half took {language.times(ratio)} as long as one of the first: other "
            "work on the machine, or pictures and checkpoints, make wall clock deviate from a line.",
            f"Une époque de la seconde moitié a pris {language.times(ratio)} le temps d'une époque de la "
            "première : d'autres travaux, ou les images et sauvegardes, écartent le temps d'une droite.",
        )


def progress_of_samples(facts: Facts, language: Language, method: str) -> Iterator[str]:
    """1.3 b, 2.2 b: how the test loss went while the samples of the figure were drawn."""
    run = facts.run(method)
    curves = {name: curve(run, name) for name in ("test_loss", "loss")}
    name = next((name for name, points in curves.items() if len(points) > 1), None)
    if name is None:
        return
    losses = curves[name]
    (start, first), (end, last) = losses[0], losses[-1]
    best_epoch, best = min(losses, key=lambda pair: pair[1])
    images = ("held-out images", "des images non vues")
    if name == "loss":
        images = ("training images", "les images d'entraînement")
    numbers = [language.number(value, 4) for value in (first, last)]
    yield language.choose(
        f"Between epochs {language.number(start)} and {language.number(end)} the loss on {images[0]} went "
        f"from {numbers[0]} to {numbers[1]}.",
        f"Entre les époques {language.number(start)} et {language.number(end)}, la perte sur {images[1]} "
        f"passe de {numbers[0]} à {numbers[1]}.",
    )
    if best_epoch != end and best < last:
        yield language.choose(
            f"It was lowest at epoch {language.number(best_epoch)} ({language.number(best, 4)}).",
            f"Elle était la plus basse à l'époque {language.number(best_epoch)} "
            f"({language.number(best, 4)}).",
        )
    if last >= first:
        yield language.choose(
            "It did not fall: longer training is needed before samples can improve.",
            "Elle n'a pas baissé : il faut un entraînement plus long avant que les échantillons progressent.",
        )
    elif len(losses) > 2:
        yield _when_it_fell(losses, language)


def _when_it_fell(losses: list[tuple[float, float]], language: Language) -> str:
    """Which share of the decrease came in the first half of the epochs."""
    middle = (losses[0][0] + losses[-1][0]) / 2
    halfway = min(losses, key=lambda pair: abs(pair[0] - middle))[1]
    share = (losses[0][1] - halfway) / (losses[0][1] - losses[-1][1])
    text = language.percent(min(1, max(0, share)))
    if share > 0.5:
        return language.choose(
            f"{text} of that decrease came in the first half of the epochs, which is where samples change "
            "most.",
            f"{text} de cette baisse a eu lieu dans la première moitié, où ils changent le plus.",
        )
    return language.choose(
        f"{text} of that decrease came in the first half of the epochs, so that samples still improve.",
        f"{text} de cette baisse a eu lieu dans la première moitié : les échantillons progressent encore.",
    )


def reconstructions(facts: Facts, language: Language) -> Iterator[str]:
    """1.3 c: how near reconstructions are, and the gap between train and test images."""
    values = facts.evaluation("vae", "reconstruct")
    if values is not None and is_number(values.get("psnr_db")):
        yield language.choose(
            f"{language.number(values.get('images'))} test images are reconstructed with a mean PSNR of "
            f"{language.number(values['psnr_db'])} dB.",
            f"{language.number(values.get('images'))} images de test sont reconstruites avec un PSNR moyen "
            f"de {language.number(values['psnr_db'])} dB.",
        )
    run = facts.run("vae")
    train, test = curve(run, "nll"), curve(run, "test_nll")
    if train and test:
        gap = test[-1][1] - train[-1][1]
        relation = ("above", "au-dessus de") if gap > 0 else ("below", "au-dessous de")
        yield language.choose(
            f"Their reconstruction loss is {language.number(abs(gap))} nats {relation[0]} that of training "
            f"images ({language.number(test[-1][1], 4)} against {language.number(train[-1][1], 4)}).",
            f"Leur perte de reconstruction est {language.number(abs(gap))} nats {relation[1]} celle des "
            f"images d'entraînement ({language.number(test[-1][1], 4)} contre "
            f"{language.number(train[-1][1], 4)}).",
        )


def samples(facts: Facts, language: Language, method: str) -> Iterator[str]:
    """1.3 d: distance, sharpness and variety of samples, beside real images."""
    values = facts.evaluation(method, "fidelity")
    distance = measure_of(values, "frechet_distance")
    if values is None or distance is None or not is_number(distance.get("samples")):
        return
    low, high = distance.get("low"), distance.get("high")
    yield language.choose(
        f"{language.number(values.get('samples'))} samples are at a Frechet distance of "
        f"{language.number(distance['samples'])} {language.interval(low, high)} from test images; training "
        f"images in their place are at {language.number(distance.get('train'))}.",
        f"{language.number(values.get('samples'))} échantillons sont à une distance de Fréchet de "
        f"{language.number(distance['samples'])} {language.interval(low, high)} des images de test ; des "
        f"images d'entraînement à leur place sont à {language.number(distance.get('train'))}.",
    )
    sharp = measure_of(values, "sharpness")
    if sharp is not None and is_number(sharp.get("samples")) and sharp.get("train"):
        yield _sharpness(sharp, language)
    precise, covered = measure_of(values, "precision"), measure_of(values, "recall")
    if precise is not None and covered is not None and is_number(covered.get("samples")):
        shares = [language.percent(row.get("samples")) for row in (precise, covered)]
        real = [language.percent(row.get("train")) for row in (precise, covered)]
        yield language.choose(
            f"{shares[0]} of them lie among the test images (precision) and they cover {shares[1]} of those "
            f"(recall); training images: {real[0]} and {real[1]}.",
            f"{shares[0]} d'entre eux se trouvent parmi les images de test (précision) et ils en couvrent "
            f"{shares[1]} (rappel) ; images d'entraînement : {real[0]} et {real[1]}.",
        )


def _sharpness(sharp: Record, language: Language) -> str:
    ratio = sharp["samples"] / sharp["train"]
    share = f"{language.percent(ratio)} {language.choose('of that', 'de celle')}"
    if ratio >= MANY_TIMES:
        share = f"{language.times(ratio)} {language.choose('that', 'celle')}"
    if is_number(sharp.get("high")) and sharp["high"] < sharp.get("train_low", -math.inf):
        return language.choose(
            f"They are blurred: their sharpness is {share} of training images, and the intervals are apart.",
            f"Ils sont flous : leur netteté vaut {share} des images d'entraînement, et les intervalles sont "
            "disjoints.",
        )
    if is_number(sharp.get("low")) and sharp["low"] > sharp.get("train_high", math.inf):
        return language.choose(
            f"They are noisier than real images: their sharpness is {share} of training images.",
            f"Ils sont plus bruités que des images réelles : leur netteté vaut {share} des images "
            "d'entraînement.",
        )
    return language.choose(
        f"They are not measurably blurred: their sharpness is {share} of training images.",
        f"Aucun flou n'est mesurable : leur netteté vaut {share} des images d'entraînement.",
    )


def latent_profile(facts: Facts, language: Language) -> Iterator[str]:
    """1.3 e: active dimensions, and how far one of them separates the classes."""
    values = facts.evaluation("vae", "latent-profile")
    if values is None or not values.get("most_discriminative_dims"):
        return
    dimension, separation = values["most_discriminative_dims"][0], values["their_separation"][0]
    active, dimensions = values.get("active_units"), values.get("z_dim")
    yield language.choose(
        f"{active} of {dimensions} latent dimensions are active.",
        f"{active} des {dimensions} dimensions latentes sont actives.",
    )
    share = language.percent(separation)
    weak = separation < WEAK
    yield language.choose(
        f"Dimension {dimension} separates the classes most: the variance between class means is {share} of "
        "that within classes, "
        f"{'so that a single dimension says little of the digit' if weak else 'a visible part'}.",
        f"La dimension {dimension} sépare le mieux les classes : la variance entre les moyennes vaut {share} "
        "de celle à l'intérieur des classes, "
        f"{'une seule dimension dit donc peu du chiffre' if weak else 'une part visible'}.",
    )
    peaks = values.get("largest_peak_by_class")
    if isinstance(peaks, Mapping) and peaks:
        name, peak = max(peaks.items(), key=lambda item: abs(item[1]["mean"]))
        yield language.choose(
            f"The largest mean is {language.number(peak['mean'])}, of class {name} in dimension "
            f"{peak['dimension']}; the prior's standard deviation is 1.",
            f"La plus grande moyenne est {language.number(peak['mean'])}, celle de la classe {name} en "
            f"dimension {peak['dimension']} ; l'écart-type du prior est 1.",
        )


def interpolation(facts: Facts, language: Language) -> Iterator[str]:
    """1.3 f: whether images change evenly along the path."""
    values = facts.evaluation("vae", "interpolate")
    if values is None or not is_number(values.get("largest_to_mean_step")):
        return
    ratio = values["largest_to_mean_step"]
    text = language.times(ratio)
    if ratio < SMOOTH:
        yield language.choose(
            f"The largest change from one image to the next is {text} the mean one: the path has no jump.",
            f"Le plus grand changement d'une image à la suivante vaut {text} le changement moyen : le chemin "
            "n'a aucun saut.",
        )
    else:
        yield language.choose(
            f"The largest change from one image to the next is {text} the mean one: the path jumps there.",
            f"Le plus grand changement d'une image à la suivante vaut {text} le changement moyen : le chemin "
            "y fait un saut.",
        )
