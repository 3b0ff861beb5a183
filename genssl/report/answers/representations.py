"""Problem 3: SimSiam and its relatives.

Every function gives the sentences that the measured numbers support; none where nothing was measured.
"""

import math
from collections.abc import Iterator

from genssl.report.answers.facts import ACCURACY, NORMAL_95, Arm, Difference, Facts, arm_with, curve
from genssl.report.answers.language import Language
from genssl.report.format import is_number

NAMES = {
    ACCURACY[0]: ("kNN accuracy", "précision kNN"),
    ACCURACY[1]: ("linear accuracy", "précision linéaire"),
}
LABELS = {
    "simsiam": "SimSiam", "byol": "BYOL", "barlow_twins": "Barlow Twins", "dssl": "DSSL", "vicreg": "VICReg",
}  # fmt: skip
HEAVIEST = "heavy_operations"


def forward_pass(facts: Facts, language: Language) -> Iterator[str]:
    """3.1: what the stop-gradient does to the loss that is reached."""
    arms = facts.ablation("simsiam", "stop_gradient")
    without = arm_with(arms, stop_gradient=False)
    losses = [arm.number("loss") for arm in (*arms[:1], without) if arm is not None]
    if len(losses) == 2 and None not in losses:
        numbers = [language.number(loss) for loss in losses]
        yield language.choose(
            f"With the stop-gradient in the forward pass the loss ends at {numbers[0]}, without it at "
            f"{numbers[1]}; its minimum is -1.",
            f"Avec le stop-gradient dans la passe avant, la perte finit à {numbers[0]}, sans lui à "
            f"{numbers[1]} ; son minimum est -1.",
        )


def cosine(facts: Facts, language: Language) -> Iterator[str]:
    """3.2: how similar predictions and projections of two views are at the end."""
    losses = curve(facts.run("simsiam"), "loss")
    if losses:
        similarity = language.number(-losses[-1][1])
        yield language.choose(
            f"At the end the cosine similarity of p and z of two views is {similarity} on average; it is at "
            "most 1.",
            f"À la fin, la similarité cosinus de p et z de deux vues vaut {similarity} en moyenne ; elle est "
            "au plus 1.",
        )


def loss(facts: Facts, language: Language) -> Iterator[str]:
    """3.3: how the loss went."""
    losses = curve(facts.run("simsiam"), "loss")
    if len(losses) > 1:
        (start, first), (end, last) = losses[0], losses[-1]
        fell = last < first
        numbers = [language.number(value) for value in (first, last)]
        yield language.choose(
            f"The loss {'fell' if fell else 'rose'} from {numbers[0]} (epoch {language.number(start)}) to "
            f"{numbers[1]} (epoch {language.number(end)}).",
            f"La perte {'passe' if fell else 'remonte'} de {numbers[0]} (époque {language.number(start)}) à "
            f"{numbers[1]} (époque {language.number(end)}).",
        )


def stop_gradient(facts: Facts, language: Language) -> Iterator[str]:
    """3.4: what is lost without the stop-gradient."""
    arms = facts.ablation("simsiam", "stop_gradient")
    without = arm_with(arms, stop_gradient=False)
    if without is None:
        return
    yield from _effect(arms[0], without, ("Without the stop-gradient", "Sans stop-gradient"), language)
    yield from _lower_loss(arms[0], without, language)


def no_predictor(facts: Facts, language: Language) -> Iterator[str]:
    """3.5 a: what is lost without the predictor."""
    arms = facts.ablation("simsiam", "predictor")
    without = arm_with(arms, predictor="identity")
    if without is None:
        return
    yield from _effect(
        arms[0],
        without,
        ("With the predictor as an identity", "Avec le prédicteur remplacé par l'identité"),
        language,
    )
    yield from _lower_loss(arms[0], without, language)


def wider_projector(facts: Facts, language: Language) -> Iterator[str]:
    """3.5 b: what another width of the projector changes."""
    yield from _wider(facts, "simsiam", language)


def barlow_twins(facts: Facts, language: Language) -> Iterator[str]:
    """3.5 c: whether Barlow Twins depends on the width as SimSiam does."""
    yield from _wider(facts, "barlow_twins", language)
    changes = {name: _width_effect(facts, name) for name in ("simsiam", "barlow_twins")}
    first, second = changes["simsiam"], changes["barlow_twins"]
    if first is None or second is None:
        return
    difference, error = second.value - first.value, math.hypot(first.error, second.error)
    texts = [_signed(change.value, language) for change in (first, second)]
    yield language.choose(
        f"The wider projector changes kNN accuracy by {texts[0]} in SimSiam and by {texts[1]} in Barlow "
        "Twins.",
        f"Le projecteur plus large change la précision kNN de {texts[0]} pour SimSiam et de {texts[1]} pour "
        "Barlow Twins.",
    )
    if abs(difference) > NORMAL_95 * error:
        yield language.choose(
            f"Barlow Twins does not behave the same: these effects differ by {language.points(difference)}, "
            "more than chance over test images explains.",
            "Barlow Twins ne se comporte pas de même : ces effets diffèrent de "
            f"{language.points(difference)}, plus que le hasard du choix des images de test n'explique.",
        )
    else:
        yield language.choose(
            "These effects are not told apart, so that at this length nothing shows another behavior.",
            "Ces effets ne se distinguent pas : à cette durée, rien ne montre un autre comportement.",
        )


def heavy_augmentation(facts: Facts, language: Language) -> Iterator[str]:
    """3.6: heavy views as standard ones, and with DSSL, at both strengths."""
    arms = facts.ablation("dssl", "naive")
    if not arms:
        return
    heavier = {arm.changes.get(HEAVIEST) for arm in arms if HEAVIEST in arm.changes}
    for operations in (None, *sorted(heavier, key=str)):
        stronger = {} if operations is None else {HEAVIEST: operations}
        directed = arm_with(arms, **stronger) if stronger else arms[0]
        naive = arm_with(arms, naive=True, **stronger)
        if directed is not None and naive is not None:
            yield from _directed(directed, naive, operations, language)
    collapsed = [arm for arm in arms if arm.collapsed]
    trained = sum(len(arm.runs) for arm in arms)
    if collapsed:
        names = language.listed([arm.name for arm in collapsed])
        yield language.choose(f"Collapsed: {names}.", f"Effondrés : {names}.")
    else:
        yield language.choose(
            f"None of these {trained} runs collapsed at this length.",
            f"Aucun de ces {trained} entraînements ne s'est effondré à cette durée.",
        )


def _directed(directed: Arm, naive: Arm, operations: object, language: Language) -> Iterator[str]:
    ours, theirs = directed.accuracy(), naive.accuracy()
    if ours is None or theirs is None:
        return
    strength = (
        language.choose("With heavy views", "Avec des vues lourdes")
        if operations is None
        else language.choose(f"With {operations} operations", f"Avec {operations} opérations")
    )
    difference = Difference.between(theirs, ours)
    yield language.choose(
        f"{strength} kNN accuracy is {language.percent(theirs.value)} where they are treated as standard "
        f"ones, and {language.percent(ours.value)} with DSSL: {_verdict(difference, language)}.",
        f"{strength}, la précision kNN est de {language.percent(theirs.value)} si on les traite comme des "
        f"vues standard, et de {language.percent(ours.value)} avec DSSL : {_verdict(difference, language)}.",
    )


def collapse(facts: Facts, language: Language) -> Iterator[str]:
    """3.7: what each of VICReg's terms prevents."""
    arms = facts.ablation("vicreg", "variance", "covariance")
    no_variance, no_covariance = arm_with(arms, variance=0), arm_with(arms, covariance=0)
    if no_variance is not None:
        yield from _effect(
            arms[0], no_variance, ("Without the variance term", "Sans le terme de variance"), language
        )
        yield from _ratio_of(arms[0], no_variance, "output_scale", ("scale", "l'échelle"), language)
    if no_covariance is not None:
        yield from _effect(
            arms[0], no_covariance, ("Without the covariance term", "Sans le terme de covariance"), language
        )
        yield from _ratio_of(
            arms[0], no_covariance, "rankme", ("effective rank", "le rang effectif"), language
        )
    neither = arm_with(arms, variance=0, covariance=0)
    if neither is not None:
        yield from _effect(arms[0], neither, ("Without both", "Sans les deux"), language)


def byol(facts: Facts, language: Language) -> Iterator[str]:
    """3.8: what the slow target network costs and gains."""
    study = facts.comparison("byol", "simsiam")
    if study is None:
        return
    sides = {
        str(row.get("method")): Arm(row) for row in study.values.get("runs", []) if isinstance(row, dict)
    }
    slow, same = sides["byol"], sides["simsiam"]
    for name in ACCURACY:
        ours, theirs = slow.accuracy(name), same.accuracy(name)
        if ours is None or theirs is None:
            continue
        difference = Difference.between(theirs, ours)
        label = NAMES[name]
        yield language.choose(
            f"{label[0].capitalize() if label[0][0] != 'k' else label[0]} is {language.percent(ours.value)} "
            f"for BYOL and {language.percent(theirs.value)} for SimSiam: {_verdict(difference, language)}.",
            f"La {label[1]} est de {language.percent(ours.value)} pour BYOL et de "
            f"{language.percent(theirs.value)} pour SimSiam : {_verdict(difference, language)}.",
        )
    speeds = [side.number("images_per_second") for side in (slow, same)]
    if speeds[0] and speeds[1]:
        ratio = language.as_long(speeds[1] / speeds[0])
        yield language.choose(
            f"An image takes BYOL {ratio} as SimSiam: its target network, an average of the online one, "
            "encodes both views once more.",
            f"Une image prend à BYOL {ratio}, comparé à SimSiam : son réseau cible, une moyenne du réseau en "
            "ligne, encode les deux vues une fois de plus.",
        )


def asymmetry(facts: Facts, language: Language) -> Iterator[str]:
    """3.9: which asymmetries the runs needed."""
    outcomes = []
    for setting, value, english, french in (
        ("stop_gradient", False, "the stop-gradient", "le stop-gradient"),
        ("predictor", "identity", "the predictor", "le prédicteur"),
    ):
        arms = facts.ablation("simsiam", setting)
        arm = arm_with(arms, **{setting: value})
        before, after = (arms[0].accuracy() if arms else None), arm.accuracy() if arm else None
        if arm is None or before is None or after is None:
            continue
        difference = Difference.between(before, after)
        is_needed = arm.collapsed or (difference.is_resolved and difference.value < 0)
        outcomes.append((language.choose(english, french), is_needed, difference, arm.collapsed))
    for name, is_needed, difference, collapsed in outcomes:
        lost = _signed(difference.value, language)
        ending = (
            language.choose(" and the outputs collapsed", " et les sorties s'effondrent") if collapsed else ""
        )
        yield language.choose(
            f"Without {name} kNN accuracy changes by {lost}{ending}: here it "
            f"{'is needed' if is_needed else 'is not shown to be needed'}.",
            f"Sans {name}, la précision kNN change de {lost}{ending} : ici, "
            f"{'il est nécessaire' if is_needed else 'il ne se montre pas nécessaire'}.",
        )
    needed = [name for name, is_needed, _, _ in outcomes if is_needed]
    if outcomes:
        yield language.choose(
            f"Of the asymmetries between the branches, {len(outcomes)} of two tested, these runs need "
            f"{len(needed)}.",
            f"Des asymétries entre les branches, {len(outcomes)} sur deux mises à l'épreuve, ces "
            f"entraînements en exigent {len(needed)}.",
        )


def _effect(before: Arm, after: Arm, what: tuple[str, str], language: Language) -> Iterator[str]:
    """What a change does to both accuracies, and whether the outputs collapsed."""
    texts = []
    for name, label in NAMES.items():
        old, new = before.accuracy(name), after.accuracy(name)
        if old is not None and new is not None:
            verdict = _verdict(Difference.between(old, new), language)
            numbers = (
                f"{language.percent(old.value)} {language.choose('to', 'à')} {language.percent(new.value)}"
            )
            texts.append(f"{language.choose(*label)} {language.choose('from', 'de')} {numbers} ({verdict})")
    if texts:
        yield language.choose(
            f"{what[0]} it goes: {'; '.join(texts)}."
            if len(texts) == 1
            else f"{what[0]}: {'; '.join(texts)}.",
            f"{what[1]} : {' ; '.join(texts)}.",
        )
    if after.collapsed:
        std, rank = (language.number(after.number(name), 2) for name in ("output_std", "rankme"))
        yield language.choose(
            f"The outputs collapsed: output standard deviation {std} (at most 1), effective rank {rank}.",
            f"Les sorties se sont effondrées : écart-type {std} (au plus 1), rang effectif {rank}.",
        )
    elif before.collapsed:
        yield language.choose("The baseline had collapsed.", "La référence s'était effondrée.")


def _lower_loss(before: Arm, after: Arm, language: Language) -> Iterator[str]:
    """That a lower loss went with worse features, where it did."""
    losses, shares = (
        [arm.number("loss") for arm in (before, after)],
        [arm.accuracy() for arm in (before, after)],
    )
    if None in losses or None in shares:
        return
    lower = losses[1] < losses[0]  # type: ignore[operator]
    worse = shares[1].value < shares[0].value  # type: ignore[union-attr]
    numbers = [language.number(value) for value in losses]
    if lower and worse:
        yield language.choose(
            f"Its loss is lower ({numbers[1]} against {numbers[0]}) and its features are worse: the loss "
            "alone does not tell how good they are.",
            f"Sa perte est plus basse ({numbers[1]} contre {numbers[0]}) et ses représentations sont moins "
            "bonnes : la perte seule ne dit pas ce qu'elles valent.",
        )
    else:
        yield language.choose(
            f"Its loss ends at {numbers[1]}, the baseline's at {numbers[0]}.",
            f"Sa perte finit à {numbers[1]}, celle de la référence à {numbers[0]}.",
        )


def _wider(facts: Facts, method: str, language: Language) -> Iterator[str]:
    arms = facts.ablation(method, "projector_dim")
    wider = next((arm for arm in arms if set(arm.changes) == {"projector_dim"}), None)
    if wider is None:
        return
    width = language.number(wider.changes["projector_dim"])
    name = LABELS[method]
    yield from _effect(
        arms[0], wider, (f"{name} with {width} outputs", f"{name} avec {width} sorties"), language
    )
    speeds = [arm.number("images_per_second") for arm in (arms[0], wider)]
    if speeds[0] and speeds[1]:
        ratio = language.as_long(speeds[0] / speeds[1])
        yield language.choose(
            f"An image takes {ratio} as in the baseline.",
            f"Une image prend {ratio}, comparée à la référence.",
        )


def _width_effect(facts: Facts, method: str) -> Difference | None:
    arms = facts.ablation(method, "projector_dim")
    wider = next((arm for arm in arms if set(arm.changes) == {"projector_dim"}), None)
    before, after = (arms[0].accuracy() if arms else None), wider.accuracy() if wider else None
    return None if before is None or after is None else Difference.between(before, after)


def _ratio_of(before: Arm, after: Arm, name: str, what: tuple[str, str], language: Language) -> Iterator[str]:
    old, new = before.number(name), after.number(name)
    if old and new is not None and is_number(old):
        yield language.choose(
            f"The outputs' {what[0]} goes from {language.number(old)} to {language.number(new)}.",
            f"Pour les sorties, {what[1]} passe de {language.number(old)} à {language.number(new)}.",
        )


def _verdict(difference: Difference, language: Language) -> str:
    text = _signed(difference.value, language)
    if difference.is_resolved:
        return language.choose(
            f"{text}, more than chance over test images", f"{text}, plus que le hasard des images de test"
        )
    return language.choose(f"{text}, not resolved", f"{text}, non résolu")


def _signed(difference: float, language: Language) -> str:
    return f"{'+' if difference >= 0 else '-'}{language.points(difference)}"
