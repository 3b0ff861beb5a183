"""`purify`."""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import _options
from genssl.commands._console import LONG, confirm, echo, progress, readable_seconds
from genssl.commands._options import Common, with_options
from genssl.commands._run import LoadedRun, find_run, load_run, note_overlap, open_evaluation
from genssl.errors import UserError

if TYPE_CHECKING:
    from genssl.data.split import Split
    from genssl.eval.purify import PurifySettings

EPSILONS = {"linf": 8 / 255, "l2": 0.5}  # of the attack by its norm: usual on images of 32 pixels
LONGEST = 10_000  # distance of two images; black and white of 4,096 pixels per side are at 7,094 in l2
STEPS_IN_BALL = 4  # of default size, from its center to its edge
# Draws and steps of the attack on the whole pipeline: (on a CPU, on a GPU)
DRAWS, FULL_STEPS = (4, 20), (10, 40)


def register(app: typer.Typer) -> None:
    """Add the command of this group."""
    app.command()(purify)


@with_options("limit")
def purify(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    classifier: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Run of a classifier; default: the only one that there is."),
    ] = None,
    t_prime: Annotated[
        list[int] | None,
        typer.Option(
            "--t-prime",
            help="Noise level to purify at, counted from 1; default: those with a tenth, a fifth and three "
            "tenths as much noise as signal. Repeatable.",
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of test images.")] = 256,
    norm: Annotated[Literal["linf", "l2"], typer.Option(help="Norm of the perturbations.")] = "linf",
    eps: Annotated[
        str | None,
        typer.Option(help="Largest norm of a perturbation, of images in [0, 1]; default: 8/255 (l2: 0.5)."),
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="Norm of an attack's step; default: a quarter of --eps.")
    ] = None,
    attack_steps: Annotated[
        int, typer.Option(min=0, max=100_000, help="Steps of the attack on the classifier alone.")
    ] = 40,
    full_steps: Annotated[
        int | None,
        typer.Option(
            min=0, max=100_000,
            help="Steps of the attack on the whole pipeline; default: 10 on a CPU, 40 on a GPU.",
        ),
    ] = None,
    eot: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000,
            help="Draws of the noise that each of its steps averages over; default: 4 on a CPU, 20 on a GPU.",
        ),
    ] = None,
    surrogate_steps: Annotated[
        int, typer.Option(min=1, max=1000, help="Denoising steps that its gradients are taken through.")
    ] = 5,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Denoising steps of the defense.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size, in images.")] = 32,
    yes: _options.Yes = False,
) -> None:  # fmt: skip
    """Attack a classifier, purify the images by a DDPM or a flow, and attack both together."""
    epsilon = EPSILONS[norm] if eps is None else _length("--eps", eps)
    step_size = epsilon / STEPS_IN_BALL if step is None else _length("--step", step)
    find_run(run, common.checkpoint)
    path = _find_classifier(classifier)
    work = open_evaluation(context, run, common)
    target = load_run(str(path), None, common.device)
    on_gpu = work.loaded.device.type == "cuda"
    from genssl.eval import purify as evaluation
    from genssl.metrics.attacks import Attack

    split = work.split("test", n)
    note_overlap(target.info, common.data or work.loaded.info.config.data, split)
    settings = evaluation.PurifySettings(
        Attack(norm, epsilon, step_size, attack_steps),
        FULL_STEPS[on_gpu] if full_steps is None else full_steps, eot or DRAWS[on_gpu], surrogate_steps,
        steps, tuple(sorted({*(t_prime or ())})), common.seed, batch_size,
    )  # fmt: skip
    _announce(work.loaded, target, split, settings, asks=not (yes or common.as_json))
    with progress("attacking") as tick:
        result = evaluation.purify(
            work.method, target.method, split, settings, name=target.info.name, tick=tick
        )
    work.finish(result, split)


def _length(option: str, text: str) -> float:
    """A length in images in [0, 1], given as a number or a fraction such as 8/255.

    Raises:
        UserError: it is neither, negative, or longer than any image.
    """
    try:
        value = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(f"{option} takes a number or a fraction such as 8/255, not {text!r}") from None
    if not 0 <= value <= LONGEST:
        raise UserError(f"{option} must be from 0 to {LONGEST:,}, not {text}")
    return value


def _find_classifier(reference: str | None) -> Path:
    """The run of --classifier, or the only one of a method that learns labels. No torch.

    Raises:
        UserError: there is none, or more than one and none is named.
    """
    from genssl import runs

    if reference is not None:
        return find_run(reference, None)[0]
    candidates = [info for info in runs.known() if info.config.needs_labels]
    if not candidates:
        raise UserError(
            "purify needs a classifier, and there is none; `genssl train classifier --data DATA` trains one"
        )
    if len(candidates) > 1:
        names = ", ".join(info.name for info in candidates)
        raise UserError(f"there are {len(candidates)} classifiers ({names}); name one with --classifier")
    return candidates[0].folder


def _announce(
    loaded: LoadedRun, target: LoadedRun, split: "Split", settings: "PurifySettings", *, asks: bool
) -> None:
    """Say what will be done and how long it takes; where that is long, ask."""
    from genssl.eval import purify as evaluation

    seconds = evaluation.expected_seconds(loaded.method, target.method, split, settings)
    lines = [
        evaluation.describe(loaded.method, settings, len(split)),
        f"expected: about {readable_seconds(seconds)}; fewer images (-n), levels (--t-prime), steps "
        "(--full-steps) or draws (--eot) take less",
    ]
    if asks and seconds >= LONG:
        confirm(*lines)
    else:
        echo(*lines)
