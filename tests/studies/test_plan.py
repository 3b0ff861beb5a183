"""Plans: what they ask for, what they skip, where they go on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from genssl import checkpoint
from genssl.errors import FAILED_RUN, TERMINATED, WRONG_INPUT, UserError
from genssl.studies.plan import FEWEST, OVERHEAD, SMALLEST, Plan, Step, begin, carry_out, fit

A = Step("make a", ("a", "--x", "1"), "a.json")
B = Step("make b", ("b",), "sub/b.json")


def plan_of(*steps: Step) -> Plan:
    return Plan("title", ("a note",), steps)


class Worker:
    """Carries out commands: each makes its file, or fails."""

    def __init__(self, folder: Path, fails: dict[str, int] | None = None) -> None:
        self.folder, self.fails, self.lines = folder, fails or {}, list[list[str]]()

    def __call__(self, line: Sequence[str]) -> int:
        assert list(line[:2]) == ["--checkpoints", str(self.folder)]
        self.lines.append(list(line[2:]))
        name = line[2]
        if code := self.fails.get(name, 0):
            return code
        file = self.folder / {"a": "a.json", "b": "sub/b.json"}[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
        return 0


def silent(text: str) -> None:
    pass


def test_steps_are_taken_once_and_in_order(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    plan = plan_of(A, B)
    assert carry_out(plan, tmp_path, worker, silent) == []
    assert worker.lines == [["a", "--x", "1"], ["b"]]
    assert carry_out(plan, tmp_path, worker, silent) == []
    assert len(worker.lines) == 2
    (tmp_path / "sub" / "b.json").unlink()
    carry_out(plan, tmp_path, worker, silent)
    assert worker.lines[2:] == [["b"]]


def test_what_fails_is_told_and_the_plan_goes_on(tmp_path: Path) -> None:
    worker = Worker(tmp_path, fails={"a": 2})
    assert carry_out(plan_of(A, B), tmp_path, worker, silent) == ["make a"]
    assert [line[0] for line in worker.lines] == ["a", "b"]


@pytest.mark.parametrize(
    ("code", "trains"), [(TERMINATED, None), (FAILED_RUN, "a-run"), (WRONG_INPUT, "a-run")]
)
def test_a_signal_and_a_failed_training_end_the_plan(tmp_path: Path, code: int, trains: str | None) -> None:
    first = Step("make a", ("a",), "a.json", trains)
    worker = Worker(tmp_path, fails={"a": code})
    with pytest.raises(UserError, match="the same command goes on") as caught:
        carry_out(plan_of(first, B), tmp_path, worker, silent)
    assert caught.value.code == code
    assert len(worker.lines) == 1


def test_a_training_is_resumed_once_it_has_begun(tmp_path: Path) -> None:
    step = Step("train", ("train", "vae"), "vae/model.safetensors", "vae")
    assert step.line(tmp_path)[2:] == ["train", "vae", "--out", str(tmp_path / "vae")]
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    assert step.line(tmp_path)[2:] == ["train", "--resume", str(tmp_path / "vae")]
    assert not step.is_done(tmp_path)


def test_a_training_is_done_once_it_has_finished(vae_run: Path, tmp_path: Path) -> None:
    step = Step("train", ("train", "vae"), f"{vae_run.name}/model.safetensors", vae_run.name)
    assert step.is_done(vae_run.parent)
    shutil.copytree(vae_run, tmp_path / vae_run.name)
    method = checkpoint.load(vae_run, "cpu")
    checkpoint.save(method, tmp_path / vae_run.name, epoch=1, finished=False, metrics={})
    assert not step.is_done(tmp_path)


def test_the_plan_is_kept_with_its_times_and_its_report_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    plan = begin(folder, {"seed": 0}, lambda: plan_of(A, B))
    carry_out(plan, folder, Worker(folder, fails={"b": 1}), silent)
    kept = begin(folder, {"seed": 0}, plan_of)
    assert [step.title for step in kept.steps] == ["make a", "make b"]
    assert all(step.seconds is not None for step in kept.steps)
    assert not kept.steps[1].is_done(folder)
    about = json.loads((folder / "about.json").read_text())
    assert (about["title"], about["notes"][0]) == ("title", "a note")


def test_a_plan_that_left_nothing_is_made_anew(tmp_path: Path) -> None:
    begin(tmp_path / "plan", {"data": "nowhere"}, lambda: plan_of(A))
    assert begin(tmp_path / "plan", {"data": "here"}, lambda: plan_of(B)).steps == (B,)


def test_how_a_training_is_carried_out_holds_when_it_is_resumed(tmp_path: Path) -> None:
    step = Step("train", ("train", "vae"), "vae/model.safetensors", "vae", how=("--max-minutes", "2")).on(
        "cpu"
    )
    for begun in (False, True):
        assert step.line(tmp_path)[-4:] == ["--max-minutes", "2", "--device", "cpu"]
        assert step.is_begun(tmp_path) == begun
        (tmp_path / "vae").mkdir(exist_ok=True)
        (tmp_path / "vae" / "config.json").write_text("{}")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    plan = begin(tmp_path / "plan", {"seed": 0, "budget": 1.0}, lambda: plan_of(A))
    carry_out(plan, tmp_path / "plan", Worker(tmp_path / "plan"), silent)
    with pytest.raises(UserError, match="begun with another budget"):
        begin(tmp_path / "plan", {"seed": 0, "budget": 2.0}, lambda: plan_of(A))
    with pytest.raises(UserError, match="holds something else"):
        begin(tmp_path, {}, lambda: plan_of(A))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        begin(tmp_path / "file", {}, lambda: plan_of(A))
    (tmp_path / "plan" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="no plan of this version"):
        begin(tmp_path / "plan", {"seed": 0, "budget": 1.0}, lambda: plan_of(A))


def test_a_budget_takes_epochs_first_and_then_images() -> None:
    def images_looked_at(seconds: float) -> float:
        length = fit(100.0, 2000, 70, seconds)
        return length.epochs * (length.limit or 2000)

    assert (fit(100.0, 2000, 70, 1e6).epochs, fit(100.0, 2000, 70, 1e6).limit) == (70, None)
    middle = fit(100.0, 2000, 70, 600.0)
    assert (middle.epochs, middle.limit) == (int(600 * 100 * (1 - OVERHEAD) / 2000), None)
    short = fit(100.0, 2000, 70, 100.0)
    assert (short.epochs, short.limit) == (FEWEST, int(100 * 100 * (1 - OVERHEAD) / FEWEST))
    assert fit(100.0, 2000, 70, 0.1).limit == SMALLEST
    assert fit(100.0, 200, 70, 0.1).limit == 200
    assert fit(100.0, 2000, 4, 1e6).epochs == 4  # fewer than FEWEST were wanted
    for seconds in (80.0, 300.0, 600.0, 1200.0):
        assert images_looked_at(seconds) <= 100 * seconds
    assert middle.share() == pytest.approx(middle.epochs / 70)
    assert short.share() == pytest.approx(FEWEST * 850 / (70 * 2000))
