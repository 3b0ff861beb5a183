"""Purification of adversarial examples (Nie et al. 2022), held against an attack that knows of it."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from genssl import figures
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.result import EvalResult, check_size, header_of, require_ability
from genssl.metrics.attacks import Attack, pgd, wilson_interval
from genssl.models.losses import cross_entropy
from genssl.models.method import CanClassify, CanPurify, Method
from genssl.pixels import to_bytes, to_model
from genssl.runtime import Counter, Tick, chunks, generator, measuring

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

BRIGHTEST = 255.0  # byte of the value 1 in the range in which attacks are measured
RATIOS = (
    0.1,
    0.2,
    0.3,
)  # of noise to signal, at the default levels
BACKWARD = 3  # a gradient costs about as much as so many forward passes
SHOWN = 6  # images in the picture
STREAMS = {"start": 0, "attack": 1, "defense": 2}  # of noise, for each image and level
COLUMNS = ("original", "attacked:\nclassifier", "purified", "attacked:\nwhole pipeline", "purified")
KINDS = {
    "clean": "clean images",
    "transfer": "attack on the classifier alone",
    "full": "attack on the whole pipeline",
}
UNITS = {
    "epsilon": "of a channel's range",
    "step_size": "of a channel's range",
    "defense_steps": "network calls per image",
    "surrogate_steps": "network calls per draw",
    "eot_draws": "per step of the attack on the whole pipeline",
    "seconds": "s",
}
NOTES = (
    "intervals are Wilson's, 95 %, of the images drawn; where two of them overlap, the sentence says that "
    "nothing is shown, which for the same images is cautious",
    "the attack on the classifier alone knows nothing of the purification; the one on the whole pipeline "
    "follows gradients through a few-step surrogate of it, averaged over draws of its noise (Lee and Kim "
    "2023). Accuracy under both is an upper bound: more steps and draws find more",
    "worst: right after either attack; best: the level where it is highest, chosen by these images, so that "
    "other images give somewhat less",
)


@dataclass(frozen=True)
class PurifySettings:
    """How images are attacked and purified.

    Attributes:
        attack: on the classifier alone.
        full_steps: steps of the attack on the whole pipeline, in the same ball with the same step size.
        eot_draws: draws of the purification's noise for each of these steps.
        surrogate_steps: network calls of the surrogate, through which gradients are taken.
        defense_steps: network calls of the purification itself.
        t_primes: its noise levels; the default ones when empty.
        seed: of all noise.
        batch_size: images at a time.
    """

    attack: Attack
    full_steps: int
    eot_draws: int
    surrogate_steps: int
    defense_steps: int = 20
    t_primes: tuple[int, ...] = ()
    seed: int = 0
    batch_size: int = 32


@dataclass(frozen=True)
class Share:
    """A share of images that are classified right, with its 95 % interval."""

    right: int
    n: int

    @property
    def accuracy(self) -> float:
        """The share itself."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's."""
        return wilson_interval(self.right, self.n)

    def values(self, name: str) -> dict[str, float]:
        """The share and its interval under their names in a result."""
        low, high = self.interval
        return {name: self.accuracy, f"{name}_low": low, f"{name}_high": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class Level:
    """What became of the images at one noise level.

    Attributes:
        t_prime: the level.
        noise_to_signal: of it.
        shares: by the names of KINDS, and "worst".
        predicted: the classes (N,) by the names of KINDS.
        attacked: the images attacked through the whole pipeline, (N, C, H, W) in [0, 1].
    """

    t_prime: int
    noise_to_signal: float
    shares: Mapping[str, Share]
    predicted: Mapping[str, Tensor] = field(default_factory=dict)
    attacked: Tensor | None = None


@dataclass(frozen=True)
class Pipeline:
    """A classifier behind a purification, on images in [0, 1]."""

    purifier: CanPurify
    classifier: CanClassify
    settings: PurifySettings

    def losses(self, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """The cross-entropy of each image under the classifier alone."""
        return lambda v: cross_entropy(self.classifier.classify(_to_model(v)), labels)

    def surrogate_losses(
        self, labels: Tensor, t_prime: int, noise: list[torch.Generator]
    ) -> Callable[[Tensor], Tensor]:
        """The same behind the surrogate of the purification, whose noise is another one in each call."""
        steps = min(self.settings.surrogate_steps, t_prime)

        def losses(v: Tensor) -> Tensor:
            x = self.purifier.purify(_to_model(v), t_prime, noise, steps, surrogate=True)
            return cross_entropy(self.classifier.classify(x), labels)

        return losses

    def purified(self, v: Tensor, t_prime: int, noise: list[torch.Generator]) -> Tensor:
        """The images as the defense shows them to the classifier, in the model's range."""
        return self.purifier.purify(_to_model(v), t_prime, noise, self.settings.defense_steps)

    def noise(self, rows: Iterable[int], stream: str, t_prime: int = 0) -> list[torch.Generator]:
        """A generator an image, of (seed, image, what it is for, t')."""
        return [generator(self.settings.seed, "eval", i, STREAMS[stream], t_prime) for i in rows]


def _to_model(v: Tensor) -> Tensor:
    """Images in [0, 1] in the model's range; bytes u are u / 255."""
    return to_model(BRIGHTEST * v)


def purify(
    method: Method, classifier: Method, split: Split, settings: PurifySettings, *, name: str = "", tick: Tick
) -> EvalResult:
    """Accuracy of a classifier on images, attacked images, and both behind a purification.

    Args:
        method: one that purifies.
        classifier: one that classifies, in eval mode and without gradients, as `checkpoint.load` gives it.
        split: labeled images of the classifier's classes; all of them are attacked.
        settings: of the attacks and the purification.
        name: of the classifier.
        tick: called with the network evaluations, forward passes of the purifier, done and in total.

    Raises:
        UserError: as `check`.
    """
    model, target = check(method, classifier, split, settings)
    split, levels = split.to(method.device), settings.t_primes or default_levels(model)
    pipeline, start = Pipeline(model, target, settings), time.perf_counter()
    count = Counter(_calls(len(split), levels, settings), tick)
    # Gradients are needed: float32 products without the inference mode
    with measuring(), torch.inference_mode(False), torch.no_grad():
        v, labels = split.images.float() / BRIGHTEST, cast(Tensor, split.labels)
        attacked = torch.cat(list(_attack_classifier(pipeline, v, labels)))
        plain = {kind: _classify(pipeline, x) == labels for kind, x in (("clean", v), ("attacked", attacked))}
        rows = [_measure(pipeline, v, attacked, labels, t_prime, count) for t_prime in levels]
        undefended = {kind: Share(int(hits.sum()), len(v)) for kind, hits in plain.items()}
        best = best_level(rows)
        values = _values(settings, name, undefended, rows)
        values["seconds"] = round(time.perf_counter() - start, 3)
        picture = _draw_examples(method, pipeline, split, attacked, best)
    drawn: dict[str, Figure | Image.Image] = {
        "accuracy": draw_accuracy(method, undefended, rows, settings),
        "examples": picture,
    }
    notes = (*NOTES, f"{len(split)} images; -n takes another number")
    return EvalResult(
        values, drawn, notes, name="purify", title="Purification", units=UNITS,
        headline=("clean.accuracy", "attacked.accuracy", "best.worst", "best.t_prime"),
    )  # fmt: skip


def check(
    method: Method, classifier: Method, split: Split, settings: PurifySettings
) -> tuple[CanPurify, CanClassify]:
    """The two abilities, if the images and the levels fit them.

    Raises:
        UserError: a method lacks its ability, the images have no labels, other classes, sizes or channels
            than the classifier, or t' is not in 1..T.
    """
    model = require_ability(method, CanPurify, "purify")
    target = require_ability(classifier, CanClassify, "purify --classifier")
    check_size(method, split)
    check_size(classifier, split)
    if classifier.config.channels != split.images.shape[1]:
        theirs, ours = classifier.config.channels, split.images.shape[1]
        raise UserError(f"the classifier takes {theirs} channels, the images have {ours}; choose another one")
    if split.labels is None:
        raise UserError(f"{split.name} has no labels, and accuracy needs them; choose another --data")
    if classifier.class_names != split.classes:
        raise UserError(
            f"the classifier knows {_some(classifier.class_names)}, and {split.name} has "
            f"{_some(split.classes)}; choose another --classifier, or its --data"
        )
    for t_prime in settings.t_primes:
        if not 1 <= t_prime <= len(model.noise_to_signal):
            raise UserError(f"t' must be from 1 to {len(model.noise_to_signal)}, not {t_prime}")
    return model, target


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"


def default_levels(model: CanPurify) -> tuple[int, ...]:
    """The levels t' at which the noise first reaches the shares RATIOS of the signal."""
    ratios = model.noise_to_signal.cpu()
    t_primes = torch.searchsorted(ratios, torch.tensor(RATIOS)) + 1
    return tuple(sorted({min(int(t_prime), len(ratios)) for t_prime in t_primes}))


def _calls(n: int, levels: Sequence[int], settings: PurifySettings) -> int:
    """Network evaluations, gradients counted as BACKWARD of them."""
    total = 0
    for t_prime in levels:
        surrogate = BACKWARD * settings.eot_draws * min(settings.surrogate_steps, t_prime)
        total += settings.full_steps * surrogate + len(KINDS) * min(settings.defense_steps, t_prime)
    return n * total


def _count_step(count: Counter, calls: int, _done: int, _total: int) -> None:
    """Count a step of an attack."""
    count.add(calls)


def _batches(n: int, size: int) -> Iterator[range]:
    return (range(*rows.indices(n)) for rows in chunks(n, size))


def _classify(pipeline: Pipeline, v: Tensor) -> Tensor:
    """The classes of images in [0, 1], (N,), by the classifier alone."""
    parts = v.split(pipeline.settings.batch_size)
    return torch.cat([pipeline.classifier.classify(_to_model(part)).argmax(1) for part in parts])


def _attack_classifier(pipeline: Pipeline, v: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """The images, a batch at a time, attacked through the classifier alone."""
    for rows in _batches(len(v), pipeline.settings.batch_size):
        chosen = slice(rows.start, rows.stop)
        start = pipeline.noise(rows, "start")
        yield pgd(pipeline.losses(labels[chosen]), v[chosen], pipeline.settings.attack, start)


def _measure(
    pipeline: Pipeline, v: Tensor, transferred: Tensor, labels: Tensor, t_prime: int, count: Counter
) -> Level:
    """What the defense at t' makes of images (N, C, H, W), of transferred attacks, and of its own."""
    settings = pipeline.settings
    full = replace(settings.attack, steps=settings.full_steps)
    predicted: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    attacked = []
    for rows in _batches(len(v), settings.batch_size):
        chosen = slice(rows.start, rows.stop)
        losses = pipeline.surrogate_losses(labels[chosen], t_prime, pipeline.noise(rows, "attack", t_prime))
        calls = BACKWARD * settings.eot_draws * min(settings.surrogate_steps, t_prime) * len(rows)
        start = pipeline.noise(rows, "start", t_prime)
        attacked.append(
            pgd(
                losses,
                v[chosen],
                full,
                start,
                draws=settings.eot_draws,
                tick=partial(_count_step, count, calls),
            )
        )
        for kind, x in (("clean", v[chosen]), ("transfer", transferred[chosen]), ("full", attacked[-1])):
            # The same noise for the three of an image, and none that the attack has seen
            shown = pipeline.purified(x, t_prime, pipeline.noise(rows, "defense", t_prime))
            predicted[kind].append(pipeline.classifier.classify(shown).argmax(1))
            count.add(min(settings.defense_steps, t_prime) * len(rows))
    classes = {kind: torch.cat(parts) for kind, parts in predicted.items()}
    right = {kind: predictions == labels for kind, predictions in classes.items()}
    right["worst"] = right["transfer"] & right["full"]
    shares = {kind: Share(int(hits.sum()), len(v)) for kind, hits in right.items()}
    ratio = float(pipeline.purifier.noise_to_signal[t_prime - 1])
    return Level(t_prime, ratio, shares, classes, torch.cat(attacked))


def _values(
    settings: PurifySettings, name: str, undefended: Mapping[str, Share], levels: Sequence[Level]
) -> dict[str, Any]:
    rows = []
    for level in levels:
        shares = [level.shares[kind].values(kind) for kind in (*KINDS, "worst")]
        row: dict[str, Any] = {"t_prime": level.t_prime, "noise_to_signal": level.noise_to_signal}
        rows.append({name: value for part in (row, *shares) for name, value in part.items()})
    best = best_level(levels)
    return {
        "finding": finding(undefended, levels),
        "images": undefended["clean"].n,
        "classifier": name,
        "norm": settings.attack.norm,
        "epsilon": settings.attack.epsilon,
        "step_size": settings.attack.step_size,
        "attack_steps": settings.attack.steps,
        "full_attack_steps": settings.full_steps,
        "eot_draws": settings.eot_draws,
        "surrogate_steps": settings.surrogate_steps,
        "defense_steps": settings.defense_steps,
        "clean": undefended["clean"].values("accuracy"),
        "attacked": undefended["attacked"].values("accuracy"),
        "best": {"t_prime": best.t_prime, "worst": best.shares["worst"].accuracy},
        "levels": rows,
    }


def best_level(levels: Sequence[Level]) -> Level:
    """The level at which most images are right after either attack; the first of several."""
    return max(levels, key=lambda level: level.shares["worst"].right)


def finding(undefended: Mapping[str, Share], levels: Sequence[Level]) -> str:
    """What holds and what does not, in a sentence that follows from the intervals.

    Args:
        undefended: "clean" and "attacked" images, by the classifier alone.
        levels: one or more; the sentence is on the one that is best under both attacks.
    """
    best = best_level(levels)
    clean, transfer, full, worst = (best.shares[kind] for kind in (*KINDS, "worst"))
    attacked = undefended["attacked"]
    parts = [
        f"without defense {undefended['clean']} of the images are classified right, and {attacked} once "
        "they are attacked"
    ]
    where = f"purified at t' = {best.t_prime}, {worst} are right after either attack"
    if _above(worst, attacked):
        parts.append(f"{where}: purification helps")
    elif _above(attacked, worst):
        parts.append(f"{where}: purification harms")
    else:
        parts.append(f"{where}: no help is shown")
    parts.append(_of_attacks(transfer, full))
    if _above(undefended["clean"], clean):
        parts.append(f"of clean images {clean} are right there: purification costs accuracy")
    else:
        parts.append(f"of clean images {clean} are right there: no loss is shown")
    return "; ".join(parts)


def _of_attacks(transfer: Share, full: Share) -> str:
    """Whether the attack that knows nothing of the purification overstates what it is worth."""
    if _above(transfer, full):
        alone = f"the attack on the classifier alone overstates it: {transfer} are left"
        return f"{alone}, by one on all of it {full}"
    if _above(full, transfer):
        return (
            f"the attack on the whole pipeline was too weak to count: it leaves {full}, that on the "
            f"classifier alone {transfer}"
        )
    both = f"the attack on the classifier alone leaves {transfer} and that on all of it {full}"
    return f"{both}: no difference is shown"


def _above(first: Share, second: Share) -> bool:
    """Whether the interval of the first lies above that of the second."""
    return first.interval[0] > second.interval[1]


def describe(method: Method, settings: PurifySettings, n: int) -> str:
    """What will be done with `n` images, in a line."""
    levels = settings.t_primes or default_levels(require_ability(method, CanPurify, "purify"))
    return (
        f"{n} images, purified at t' = {', '.join(map(str, levels))}; attacked in an "
        f"{_ball(settings.attack)}: the classifier alone by {settings.attack.steps} steps, the whole "
        f"pipeline by {settings.full_steps}, each along the mean of {settings.eot_draws} gradients through "
        f"{settings.surrogate_steps} denoising steps"
    )


def _ball(attack: Attack) -> str:
    """Such as "linf ball of 8/255"."""
    radius = f"{BRIGHTEST * attack.epsilon:.3g}/255" if attack.norm == "linf" else f"{attack.epsilon:.3g}"
    return f"{attack.norm} ball of {radius}"


def expected_seconds(method: Method, classifier: Method, split: Split, settings: PurifySettings) -> float:
    """How long `purify` takes, from one gradient through the surrogate and one purification of few images.

    Raises:
        UserError: as `check`.
    """
    model, target = check(method, classifier, split, settings)
    split, levels = split.to(method.device), settings.t_primes or default_levels(model)
    pipeline, n = Pipeline(model, target, settings), min(8, settings.batch_size, len(split))
    with measuring(), torch.inference_mode(False), torch.no_grad():
        v, labels = split.images[:n].float() / BRIGHTEST, cast(Tensor, split.labels)[:n]
        noise, once = pipeline.noise(range(n), "attack"), Attack(steps=1)
        losses = pipeline.surrogate_losses(labels, levels[-1], noise)
        works: list[Callable[[], Tensor]] = [
            lambda: pgd(losses, v, once, noise),
            lambda: pipeline.purified(v, levels[-1], noise),
            lambda: pgd(pipeline.losses(labels), v, once, noise),
        ]
        gradient, defense, alone = (_seconds(work) / n for work in works)
    level = settings.full_steps * settings.eot_draws * gradient + len(KINDS) * defense
    return len(split) * (len(levels) * level + settings.attack.steps * alone)


def _seconds(work: Callable[[], Tensor]) -> float:
    """Of the second time, since the first one allocates; waits for the device."""
    work()
    start = time.perf_counter()
    work().sum().item()
    return time.perf_counter() - start


def draw_accuracy(
    method: Method, undefended: Mapping[str, Share], levels: Sequence[Level], settings: PurifySettings
) -> "Figure":
    """Accuracy over t' with its intervals: clean, transferred and full attack; dashed: without defense."""
    figure, (axis,) = figures.new_figure(1, 1, 7.2, 4.2)
    t_primes = [level.t_prime for level in levels]
    for kind, color, title in (("clean", "tab:blue", "clean"), ("attacked", "tab:red", "attacked")):
        share = undefended[kind]
        label = f"{title}, without defense"
        axis.axhline(100 * share.accuracy, color=color, linestyle="--", linewidth=1, label=label)
        axis.axhspan(*(100 * end for end in share.interval), color=color, alpha=0.1, linewidth=0)
    colors = ("tab:blue", "tab:orange", "tab:red")
    # Beside each other, so that all intervals are seen
    apart = 0.01 * (max(t_primes) - min(t_primes) or 10)
    places = {kind: [t + i * apart for t in t_primes] for i, kind in enumerate(KINDS, -1)}
    for (kind, title), color in zip(KINDS.items(), colors, strict=True):
        shares = [level.shares[kind] for level in levels]
        ends = [[abs(share.accuracy - share.interval[i]) * 100 for share in shares] for i in (0, 1)]
        heights = [100 * share.accuracy for share in shares]
        style: dict[str, Any] = {"color": color, "marker": "o", "capsize": 3}
        axis.errorbar(places[kind], heights, ends, label=f"{title}, purified", **style)
    what = f"purification of {undefended['clean'].n} images\n{_ball(settings.attack)}, intervals of 95 %"
    axis.set(xlabel="noise level t'", ylabel="accuracy (%)", ylim=(-3, 103))
    figure.suptitle(header_of(method, what))
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _draw_examples(
    method: Method, pipeline: Pipeline, split: Split, transferred: Tensor, level: Level
) -> "Image.Image":
    """An image of each of some classes, attacked and purified in both ways, with the classifier's words."""
    labels = cast(Tensor, split.labels)
    rows = figures.one_of_each(labels, SHOWN).tolist()
    v, attacks = split.images[rows].float() / BRIGHTEST, cast(Tensor, level.attacked)[rows]
    noise = [pipeline.noise(rows, "defense", level.t_prime) for _ in range(2)]
    shown = [v, transferred[rows], attacks]
    purified = [pipeline.purified(x, level.t_prime, n) for x, n in zip(shown[1:], noise, strict=True)]
    first, second, third = (_classify(pipeline, x) for x in shown)
    words = (first, second, level.predicted["transfer"][rows], third, level.predicted["full"][rows])
    original, attacked, through_all = map(_to_model, shown)
    pictures = to_bytes(torch.stack([original, attacked, purified[0], through_all, purified[1]], 1))
    names = [[split.classes[i] for i in row] for row in torch.stack(words, 1).tolist()]
    what = f"t' = {level.t_prime}, {_ball(pipeline.settings.attack)}; below: what the classifier says"
    truths = [split.classes[i] for i in labels[rows].tolist()]
    return figures.draw_captioned(pictures, names, truths, COLUMNS, header_of(method, what))
