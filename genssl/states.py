"""How far a run has come, in the words and numbers that every screen, page and curve uses. No torch."""

from collections.abc import Mapping
from typing import Any, Literal

State = Literal["finished", "stopped by time", "unfinished"]


def state_of(finished: bool, epoch: int, epochs: int) -> State:
    """The state of a run.

    Args:
        finished: its weights were written at the end of a training, be it the last epoch's or --max-minutes'.
        epoch: whole epochs that the weights have seen.
        epochs: that were asked for.
    """
    if not finished:
        return "unfinished"
    return "finished" if epoch >= epochs else "stopped by time"


def epochs_of(step: int, steps_per_epoch: int) -> int | float:
    """How many epochs so many steps are: a part of one to two decimals, never rounded to a whole one."""
    whole, rest = divmod(step, steps_per_epoch)
    if rest == 0:
        return whole
    return round(whole + min(max(rest / steps_per_epoch, 0.01), 0.99), 2)


def epochs_trained(epoch: int, metrics: Mapping[str, Any]) -> int | float:
    """How many epochs a run's weights have seen, with the part of the one that time has cut.

    Args:
        epoch: the whole ones.
        metrics: the last record of the history.
    """
    last = metrics.get("epoch", epoch)
    # Earlier versions recorded a part of an epoch under the number of the whole one
    return last if isinstance(last, int | float) and epoch <= last < epoch + 1 else epoch


def progress_of(trained: float, epochs: int) -> str:
    """`3.43 of 10`, or `10` when these are all."""
    return f"{trained:,.6g}" if trained >= epochs else f"{trained:,.6g} of {epochs:,}"
