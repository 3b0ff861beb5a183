"""`segment` and `probe`: what features are good for, with few labels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genssl.commands import _options
from genssl.commands._console import progress
from genssl.commands._options import Common, with_options
from genssl.commands._run import (
    Evaluation,
    LoadedRun,
    find_run,
    load_run,
    note_overlap,
    open_evaluation,
)
from genssl.data.registry import SOURCES
from genssl.errors import UserError
from genssl.files import expand_home

if TYPE_CHECKING:
    from genssl.data.registry import Part
    from genssl.data.split import Split
    from genssl.models.method import Method


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(segment)
    app.command()(probe)


TEST_IMAGES = 100
Beside = Annotated[
    list[str] | None,
    typer.Option(metavar="REF", help="Another run, measured on the same images; repeatable."),
]


@with_options("limit", "batch_size")
def segment(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    labeled: Annotated[
        list[int] | None, typer.Option(min=1, help="Number of labeled images; default: 50. Repeatable.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, max=1000, help="Draws of the labeled images.")] = 5,
    blocks: Annotated[
        list[str] | None,
        typer.Option(metavar="N,N,...", help="Blocks of the run's network, from 1; default: all."),
    ] = None,
    times: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T,T,...",
            help="Noise levels; default: 50,150,250 of 1,000 (DDPM), 0.15,0.34,0.49 (flow).",
        ),
    ] = None,
    classes: Annotated[
        Literal["ground", "all"],
        typer.Option(help="Tell ground from everything else, or all classes of the masks."),
    ] = "ground",
    members: Annotated[int, typer.Option(min=1, max=1000, help="Pixel classifiers of an ensemble.")] = 5,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training steps of each ensemble.")] = 300,
    heat_map: Annotated[bool, typer.Option(help="Also measure each block and time by itself.")] = True,
    test_limit: Annotated[
        int, typer.Option("--test-limit", min=1, metavar="N", help="Use at most N test images, shuffled.")
    ] = TEST_IMAGES,
    beside: Beside = None,
) -> None:
    """Segment test images from the features of a few labeled ones, beside baselines."""
    chosen_blocks = [_options.whole(block, "--blocks") for block in _options.numbers(blocks, "--blocks")]
    chosen_times = _options.numbers(times, "--times")
    _find(beside)
    work = open_evaluation(context, run, common)
    from genssl.eval import segment as evaluation
    from genssl.metrics.segmentation import ClassifierSettings

    settings = evaluation.SegmentSettings(
        tuple(dict.fromkeys(labeled or [50])), draws, chosen_blocks or None, chosen_times or None,
        classes, heat_map, ClassifierSettings(members, steps), common.seed,
    )  # fmt: skip
    others = _others(work, beside or [])
    train, test = _with_masks(work, "train"), _with_masks(work, "test").take(test_limit, common.seed)
    methods = _methods(work, others, test)
    with progress("training pixel classifiers") as tick:
        result = evaluation.segment(work.method, train, test, settings, beside=methods, tick=tick)
    work.finish(result, test)


def _with_masks(work: Evaluation, part: "Part") -> "Split":
    """A part of --data, with masks where it has some: of a folder with masks/, or as any data."""
    from genssl.data import masked_folder

    config = work.loaded.info.config
    data = work.common.data or config.data
    path = expand_home(data)
    if data in SOURCES or not masked_folder.has_masks(path):
        return work.split(part)
    split = masked_folder.read_masked(
        path, part, config.image_size, config.channels, fit=config.fit, seed=config.seed
    )
    return split.to(work.loaded.device)


def _find(references: Sequence[str] | None) -> None:
    """Check that the runs of --beside are there, before anything takes time."""
    for reference in references or ():
        find_run(reference, None)


def _others(work: Evaluation, references: Sequence[str]) -> dict[str, LoadedRun]:
    """The runs of --beside: by their method, or by their own name where that is taken."""
    others: dict[str, LoadedRun] = {}
    for reference in references:
        loaded = load_run(reference, None, work.common.device)
        name = loaded.info.config.method
        if name in {work.method.config.method, *others}:
            name = loaded.info.name
        if name in others or loaded.info.name == work.loaded.info.name:
            raise UserError(f"{reference} is measured already; name each run once")
        others[name] = loaded
    return others


def _methods(work: Evaluation, others: Mapping[str, LoadedRun], test: "Split") -> "dict[str, Method]":
    """The methods of the runs of --beside; says so where one may have been trained on test images."""
    for other in others.values():
        note_overlap(other.info, work.common.data or work.loaded.info.config.data, test)
    return {name: other.method for name, other in others.items()}


@with_options()
def probe(
    context: typer.Context,
    run: _options.Run,
    common: Common,
    label_fractions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="F,F,...", help="Shares of the train images with labels; default: 0.01,0.1,1. Repeatable."
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, max=1000, help="Draws of the labeled images.")] = 5,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of neighbors.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, max=100_000, help="Epochs of the linear classifier.")] = 100,
    lr: Annotated[float, typer.Option("--lr", help="Initial learning rate of the linear classifier.")] = 30.0,
    baselines: Annotated[
        bool, typer.Option(help="Also classify raw pixels and the features of an untrained encoder.")
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Draw from at most N train images, shuffled."),
    ] = None,
    test_limit: Annotated[
        int | None,
        typer.Option("--test-limit", min=1, metavar="N", help="Use at most N test images, shuffled."),
    ] = None,
    beside: Beside = None,
) -> None:
    """Linear and kNN accuracy of the features of a run, by the share of labels."""
    if not 0 < lr < float("inf"):
        raise UserError(f"--lr must be above 0, not {lr:g}")
    fractions = _options.numbers(label_fractions, "--label-fractions")
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise UserError(f"--label-fractions must be above 0 and at most 1, not {fraction:g}")
    _find(beside)
    work = open_evaluation(context, run, common)
    from genssl.eval import probe as evaluation
    from genssl.metrics.linear_probe import ProbeSettings

    others = _others(work, beside or [])
    train, test = work.split("train", limit), work.split("test", test_limit)
    settings = evaluation.LabelFractions(
        fractions or [0.01, 0.1, 1.0], draws, k, ProbeSettings(epochs=epochs, learning_rate=lr), common.seed
    )
    methods = _methods(work, others, test)
    with progress("classifying") as tick:
        result = evaluation.probe(
            work.method, train, test, settings, beside=methods, baselines=baselines,
            batch_size=common.batch_size, tick=tick,
        )  # fmt: skip
    work.finish(result, test)
