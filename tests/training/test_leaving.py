"""Gloo's threads end with a run: one that frees a tensor as the interpreter ends aborts the process."""

import json
import os
from pathlib import Path

import pytest

from genssl import config as configs
from genssl import distributed
from genssl.errors import UserError
from genssl.training import run
from genssl.training.options import Options

from .pair import TASKS, gloo_threads, start_processes

CHANGES = {
    "epochs": 1, "batch_size": 8, "limit": 16, "encoder": "small", "projector_hidden": 8, "projector_dim": 8,
    "knn_every": 0, "sample_every": 0, "precision": "fp32",
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TASKS.exists(), reason="finds threads in /proc"),
]


def train(data: Path, changes: dict[str, object], folder: Path) -> None:
    """A run in this process, and a file that says how many threads there were before and after leaving."""
    before = []
    leave = distributed.shutdown

    def counted_leave() -> None:
        before.append(gloo_threads())
        leave()

    distributed.shutdown = counted_leave
    failure = None
    try:
        config = configs.make("simsiam", CHANGES | {"data": str(data)} | changes)
        run.start(config, Options(device="cpu", out=folder / "run"))
    except UserError as error:
        # Held while the threads are counted: its traceback ends in the frames of the run
        failure = error
    report = {"before": before, "after": gloo_threads(), "failure": failure and str(failure)}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("changes", "failure"),
    [({}, None), ({"learning_rate": 1e30, "warmup_epochs": 0}, "not finite")],
    ids=["finished", "failed"],
)
def test_no_thread_of_gloo_outlives_a_run(
    changes: dict[str, object], failure: str | None, digits: Path, tmp_path: Path
) -> None:
    start_processes(train, digits, changes, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    if failure is None:
        assert (first["failure"], second["failure"]) == (None, None)
    else:
        assert failure in first["failure"]
        assert "another process of this run has ended" in second["failure"]
    for report in (first, second):
        assert len(report["before"]) == 1
        assert report["before"][0] > 0
        assert report["after"] == 0
