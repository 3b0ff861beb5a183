"""A run in TensorBoard, an extra: the numbers and the pictures of its epochs."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from genssl import figures
from genssl.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents."  # prefix of event files
# Tags of everything but losses; a loss NAME has the tag NAME/train, and test_NAME has NAME/test. The tags of
# what is measured on a validation split end with its name: NAME/validation
TAGS = {
    "epoch": "progress/epoch",
    "seconds": "progress/seconds",
    "images_per_second": "speed/images_per_second",
    "learning_rate": "learning_rate",
    "output_std": "collapse/output_std",
    "rankme": "collapse/rankme",
    "output_scale": "collapse/output_scale",
    "collapsed": "collapse/collapsed",
    "knn_accuracy": "neighbors/accuracy",
}


class TensorBoardLogger:
    """Writes a run's epochs for TensorBoard, into `tensorboard/` of its folder.

    Args:
        folder: the run folder.
        step: of the last epoch in the run's history, 0 when there is none. What an interrupted run wrote of
            later steps is purged.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        writer = _writer_class()
        _put_first(folder / FOLDER)
        # Readers drop what they have read of this step and above, for every tag
        self._writer = writer(log_dir=str(folder / FOLDER), purge_step=step + 1)

    def epoch(self, record: Mapping[str, Any], previews: Mapping[str, Tensor]) -> None:
        """Write an epoch: its numbers, and its pictures when there are any.

        Args:
            record: the epoch's line of the history; what is no finite number is left out.
            previews: the pictures by kind, each (M, C, H, W) in the model's range.
        """
        step = record["step"]
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(tag_of(name, record.get("split", "test")), value, step)
        for kind, images in previews.items():
            picture = np.asarray(figures.preview(kind, images))
            self._writer.add_image(kind, picture, step, dataformats="HWC")
        self._writer.flush()  # a killed run loses no epoch

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def tag_of(name: str, split: str = "test") -> str:
    """Where TensorBoard shows a number of the history: what stands before the slash shares a group.

    Args:
        name: of the number.
        split: that is measured while training.
    """
    if name in TAGS:
        is_held_out = split != "test" and (name in figures.HELD_OUT or name == "collapsed")
        return f"{TAGS[name]}/{split}" if is_held_out else TAGS[name]
    prefix = f"{split}_"
    return f"{name.removeprefix(prefix)}/{split}" if name.startswith(prefix) else f"{name}/train"


def require_tensorboard() -> None:
    """Find out whether there is a TensorBoard to write for, before any work is done.

    Raises:
        UserError: there is none.
    """
    _writer_class()


def _writer_class() -> "type[SummaryWriter]":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs a package that is not installed: pip install 'genssl[tensorboard]'"
        ) from None
    return SummaryWriter


def _put_first(folder: Path) -> None:
    """Have the event files of earlier sittings read before the next one.

    Readers take them by name, which begins with the time of day in seconds; but a clock may step back between
    two sittings, or differ between two machines. Where it did, the earlier files are renamed in their order.
    """
    earlier = sorted(folder.glob(f"{EVENTS}*"))
    if earlier and earlier[-1].name >= f"{EVENTS}{int(time.time()):010d}":
        for i, file in enumerate(earlier):
            file.rename(folder / f"{EVENTS}{0:010d}.{i:06d}")
