"""Sweeps: arms over seeds in the order of a metric, as numbers, as a table and as a figure."""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genssl.config import VAEConfig
from genssl.report import load as report_load
from genssl.report import studies as report_studies
from genssl.run_info import RunInfo
from genssl.studies.figures import draw_ranking
from genssl.studies.results import KNN, LINEAR, Arm, ArmRuns, Findings, Measured, metric_of, rank
from genssl.training import run
from tests.conftest import call
from tests.report import folder as report_folder


def arm_of(name: str, *values: float, metric: str = "test_loss", **changes: Any) -> ArmRuns:
    info = RunInfo(Path("nowhere"), VAEConfig(), 70, True, {}, "")
    runs = [Measured(info, [], Findings({metric: value})) for value in values]
    return ArmRuns(Arm(name, changes), runs, [] if runs else ["seed 0: broke"])


BASELINE = arm_of("baseline", 5.0, 3.0)
ARMS = [BASELINE, arm_of("a", 9.0, 6.0, 7.5), arm_of("b", 1.0, 2.5), arm_of("c", 3.5)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(1, 4))))
def test_arms_are_in_the_order_of_their_means_whatever_theirs_was(order: tuple[int, ...]) -> None:
    given = [BASELINE, *(ARMS[i] for i in order)]
    assert [item.arm for item in rank(given, "test_loss")] == ["b", "c", "baseline", "a"]


def test_a_record_is_numpys_mean_deviation_and_range() -> None:
    numbers: list[list[float]] = [[1, 2.5], [3.5], [5, 3], [9, 6, 7.5]]
    for item, values in zip(rank(ARMS, "test_loss"), numbers, strict=True):
        expected = {"mean": np.mean(values), "low": np.min(values), "high": np.max(values)}
        expected["std"] = np.std(values, ddof=1) if len(values) > 1 else None
        record = item.record()
        assert record.pop("seeds") == len(values)
        assert record.pop("remark") == ""
        assert record.pop("arm") == item.arm
        assert record == pytest.approx(expected)


def test_accuracies_are_better_when_higher() -> None:
    arms = [arm_of(name, value, metric=KNN) for name, value in (("low", 0.2), ("high", 0.8))]
    assert [item.arm for item in rank(arms, KNN)] == ["high", "low"]


def test_what_does_not_compare_and_what_has_failed_come_last() -> None:
    arms = [BASELINE, arm_of("learned", -9.0, decoder_variance="learned"), arm_of("broken"), ARMS[2]]
    ranks = rank(arms, "test_loss")
    assert [(item.arm, item.remark) for item in ranks] == [
        ("b", ""), ("baseline", ""), ("learned", "not comparable: another loss"), ("broken", "failed"),
    ]  # fmt: skip
    assert ranks[-1].record() == {
        "arm": "broken", "mean": None, "std": None, "low": None, "high": None, "seeds": 0, "remark": "failed",
    }  # fmt: skip
    other = arm_of("other", 0.9, metric=KNN, data="cifar10")
    assert rank([arm_of("baseline", 0.5, metric=KNN), other], KNN)[-1].remark == "not comparable: other data"


def test_the_metric_is_the_first_headline_that_all_arms_have() -> None:
    assert metric_of([arm_of("a", 1.0, metric=KNN), arm_of("b", 1.0, metric=KNN)]) == KNN
    assert metric_of([arm_of("a", 1.0, metric=KNN), arm_of("b", 1.0, metric=LINEAR)]) is None
    assert metric_of([arm_of("a", 1.0), arm_of("broken")]) == "test_loss"
    assert metric_of([arm_of("broken")]) is None


def test_the_figure_has_a_line_an_arm_from_the_lowest_to_the_highest_seed() -> None:
    ranks = rank(ARMS, "test_loss")
    (axis,) = draw_ranking(ARMS, ranks, "test_loss", "title")["ranking"].axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ["b\n2 seeds", "c\n1 seed", "baseline\n2 seeds", "a\n3 seeds"]
    assert axis.yaxis_inverted()
    for i, item in enumerate(ranks):
        line, seeds, mean = (entry for entry in axis.get_lines() if set(np.asarray(entry.get_ydata())) == {i})
        assert list(np.asarray(line.get_xdata())) == [min(item.values), max(item.values)]
        assert list(np.asarray(seeds.get_xdata())) == item.values
        assert list(np.asarray(mean.get_xdata())) == [statistics.fmean(item.values)]
    assert axis.get_xlabel() == "test loss (lower is better)"


def test_a_color_is_that_of_the_arm_in_the_other_figures() -> None:
    (axis,) = draw_ranking(ARMS, rank(ARMS, "test_loss"), "test_loss", "")["ranking"].axes
    colors = [line.get_color() for line in axis.get_lines()[::3]]
    assert colors == ["C2", "C3", "C0", "C1"]  # of b, c, the baseline and a by their places in ARMS


def test_two_arms_of_one_seed_are_no_sweep() -> None:
    one = [arm_of("baseline", 5.0), arm_of("a", 9.0)]
    assert draw_ranking(one, rank(one, "test_loss"), "test_loss", "") == {}
    assert draw_ranking(ARMS[:2], rank(ARMS[:2], "test_loss"), "test_loss", "") != {}
    broken = [BASELINE, arm_of("broken"), arm_of("learned", 1.0, decoder_variance="learned")]
    assert draw_ranking(broken, rank(broken, "test_loss"), "test_loss", "") == {}


GRID = ["--set=z_dim=2", "--set=z_dim=4", "--set=width=5"]


def test_a_grid_over_seeds_continues_and_is_shown_in_order(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    start, started = run.start, list[tuple[Any, ...]]()

    def cut_short(config: Any, *rest: Any) -> Path:
        started.append((config.z_dim, config.width, config.seed))
        if len(started) == 4:
            raise KeyboardInterrupt
        return start(config, *rest)

    monkeypatch.setattr(run, "start", cut_short)
    base = ["--base=mixture_components=0", "--base=sample_every=0", "--base=z_dim=3", "--base=width=4"]
    command = ["ablate", "vae", "--data", digits, "--limit", 40, "--epochs", 1, "--batch-size", 40, *GRID]
    command += [*base, "--seeds", 2, "--device", "cpu", "--yes"]
    assert call(*command).exit_code != 0
    result = call(*command)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "ablate-vae-digits-width-z_dim"
    values = json.loads((folder / "ablate.json").read_text())
    grid = [(3, 4), (2, 5), (4, 5)]
    assert len(started) == 2 * len(grid) + 1  # the one that was cut short, again
    assert set(started) == {(*entry, seed) for entry in grid for seed in (0, 1)}
    means = {row["arm"]: row["numbers"]["loss"]["mean"] for row in values["rows"]}
    expected = sorted(means, key=means.__getitem__)
    ranking = values["ranking"]
    assert (ranking["metric"], ranking["better"]) == ("loss", "lower")
    assert [item["arm"] for item in ranking["arms"]] == expected
    assert {item["seeds"] for item in ranking["arms"]} == {2}
    assert Image.open(folder / "ablate-ranking.png").size[0] > 500
    table = result.stdout.split("by loss (lower is better)")[1].split("verdicts")[0].splitlines()
    assert [line.split("  ")[1].strip() for line in table if "±" in line and " to " in line] == expected
    found = report_load.gather([str(folder)])
    (study,) = found.studies
    assert [row["arm"] for row in report_studies.ranked(study)] == expected
    titles = [figure.title for figure in report_studies.draw(study, found)]
    assert titles == ["an ablation", "ranking"]


def test_a_study_of_an_earlier_version_stays_in_its_order(tmp_path: Path) -> None:
    report_folder.ablation(tmp_path / "study", [{"z_dim": 2}, {"z_dim": 1}])
    (study,) = report_load.gather([str(tmp_path / "study")]).studies
    assert [row["arm"] for row in report_studies.ranked(study)] == ["baseline", "z_dim=2", "z_dim=1"]
