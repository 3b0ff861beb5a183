"""What the processes of a run do that do not lead it: the same steps, and their share of what is measured."""

from pathlib import Path

from genssl import processes
from genssl.errors import Echo
from genssl.train.loop import Training
from genssl.train.sitting import StopSignals
from genssl.train.watch import Watch

OUT_OF_TIME = 1  # what the processes agree on after a step: this, an exit code, or 0 to go on


def follow(training: Training, watch: Watch) -> Path:
    """Train along with the first process, which does all the rest. Returns the run's folder.

    Raises:
        Echo: the run was stopped.
    """
    with StopSignals() as signals:
        folder = processes.told_folder()
        for step in training.steps():
            whole = step.step % training.steps_per_epoch == 0
            if whole:
                watch.observe(training.inference, step.epoch, steps=step.step, last=False)
            code = processes.agree(signals.code or 0)
            if code > OUT_OF_TIME:
                raise Echo("stopped", code)
            if code == OUT_OF_TIME:
                if not whole:
                    watch.observe(training.inference, step.epoch, steps=step.step, last=True)
                break
    watch.references(training.inference, None)
    return folder
