"""`inpaint`."""

from typing import Annotated

import typer

from genssl.commands import _options
from genssl.commands._console import progress
from genssl.commands._options import Common, with_options
from genssl.commands._run import find_run, open_evaluation

MOST_STEPS, MOST_RESAMPLINGS = 100_000, 1_000


def register(app: typer.Typer) -> None:
    """Add the command of this group."""
    app.command()(inpaint)


@with_options("limit")
def inpaint(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    mask: Annotated[
        str,
        typer.Option(
            metavar="box|left|FILE",
            help="Pixels to fill: the center box, the left half, or the white of a PNG of the same size.",
        ),
    ] = "box",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of test images.")] = 8,
    completions: Annotated[int, typer.Option(min=1, help="Completions of each image.")] = 4,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST_STEPS, help="Steps from noise to the image; default: 50.")
    ] = None,
    jump_length: Annotated[
        int | None, typer.Option(min=1, help="Steps that a jump goes back to more noise; default: 5.")
    ] = None,
    resamplings: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_RESAMPLINGS, help="Times that each level is reached; 1: no jumps; default: 5."
        ),
    ] = None,
    class_label: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Class of the completions, by name or number, or all: a column per class; default: the "
            "image's own.",
        ),
    ] = None,
    guidance: _options.Guidance = None,
) -> None:
    """Fill a part of test images anew, several times (DDPM, flow)."""
    config = find_run(run, common.checkpoint)[1].config
    from genssl.eval import inpaint as evaluation

    pixels = evaluation.read_mask(mask, config.image_size)
    work = open_evaluation(context, run, common)
    split = work.split("test")
    options = _options.given(
        steps=steps, jump_length=jump_length, resamplings=resamplings, class_label=class_label,
        guidance=guidance,
    )  # fmt: skip
    with progress("inpainting") as tick:
        result = evaluation.inpaint(
            work.method, split, pixels, mask_name=mask, n=n, completions=completions, seed=common.seed,
            batch_size=common.batch_size, options=options, tick=tick,
        )  # fmt: skip
    work.finish(result, split)
