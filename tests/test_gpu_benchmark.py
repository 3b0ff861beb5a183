"""The command for a GPU, carried out on the CPU with the least of everything."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gaps import gaps


def setting(folder: Path, minutes: float = 5.0) -> gpu.Setting:
    until = time.monotonic() + 60 * minutes
    return gpu.Setting(torch.device("cpu"), True, until, "svhn", "cifar10", folder)


def carry_out(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    command = [
        "gpu",
        "--device",
        "cpu",
        "--tiny",
        "--out",
        str(folder / "out"),
        "--runs",
        str(folder / "runs"),
    ]
    monkeypatch.setattr(sys, "argv", [*command, *words])
    gpu.main()


def rows_of(file: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads(file.read_text())["rows"]
    return rows


@pytest.mark.slow
def test_all_stages_go_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    carry_out(monkeypatch, tmp_path)
    stages = {file.stem: rows_of(file) for file in (tmp_path / "out").iterdir()}
    assert stages.keys() == gpu.STAGES.keys()
    assert all(row.get("done", True) for rows in stages.values() for row in rows.values())
    for row in stages["checks"].values():
        assert row["agrees"]
        assert row["resumes_to_the_bit"]
        assert row["compiled_losses"] == pytest.approx(row["fp32_losses"], rel=1e-4)
        assert row["bf16_losses"] != row["fp32_losses"]
        assert row["bf16_difference"] < gpu.BF16_TOLERANCE
    for name in ("simsiam, eager", "vae, eager"):
        assert 0 < stages["speed"][name]["roofline_share"] < 1
    assert stages["measures"]["quality, dpm++, 2 steps"]["fd"] > 0
    assert stages["trainings"]["vae"]["state"] == "finished"
    assert len(stages["trainings"]["vae"]["history"]) == 1
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    carry_out(monkeypatch, tmp_path)
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_stage_goes_on_where_it_was_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []
    outcomes: dict[str, list[dict[str, Any]]] = {
        "first": [{"value": 1}],
        "training": [
            {"command": "train", "seconds": 5.0, "done": False},
            {"command": "train", "seconds": 2.0, "done": True},
        ],
        "broken": [],
    }

    def row(name: str) -> dict[str, Any]:
        made.append(name)
        return outcomes[name].pop(0)

    def stage(_: gpu.Setting) -> Any:
        return ((name, lambda name=name: row(name)) for name in outcomes)

    monkeypatch.setitem(gpu.STAGES, "speed", stage)
    file = tmp_path / "speed.json"
    # no minutes: nothing is begun
    assert not gpu.run_stage("speed", setting(tmp_path, 0), tmp_path, {})
    assert not made
    assert not gpu.run_stage("speed", setting(tmp_path), tmp_path, {"device": "x"})
    assert rows_of(file)["broken"]["error"].startswith("IndexError")
    assert not gpu.run_stage("speed", setting(tmp_path), tmp_path, {})
    outcomes["broken"].append({"value": 2})
    assert gpu.run_stage("speed", setting(tmp_path), tmp_path, {})
    assert made == ["first", "training", "broken", "training", "broken", "broken"]
    assert rows_of(file)["training"]["seconds_so_far"] == 7.0
    assert rows_of(file)["broken"] == {"value": 2}


def test_the_trainings_are_those_of_the_goals(tmp_path: Path) -> None:
    named = gpu.commands(gpu.Setting(torch.device("cpu"), False, 0.0, "svhn", "cifar10", tmp_path))
    assert sum(name.startswith("simsiam") for name in named) == 4
    assert {"vae, svhn", "ddpm, svhn", "vae, synthetic", "ddpm, synthetic"} <= named.keys()
    assert len(named) == 12
    assert len(set(map(tuple, named.values()))) == 12


def test_a_method_that_learns_labels_is_shown_them() -> None:
    training = gpu.training_of("classifier", {"encoder": "small", "batch_size": 4}, 8, torch.device("cpu"))
    loss, gradients = gpu.one_pass(training)
    assert loss > 0
    assert bool(gradients.any())


def test_gaps_are_where_no_stream_works() -> None:
    # two streams that overlap, a gap of 50 us, and one of 4 us, which is between any two kernels
    found = gaps([(0, 10), (5, 20), (70, 80), (84, 100), (6, 7)], steps=2)
    assert found["device_busy_share"] == pytest.approx((20 + 10 + 16) / 100)
    assert found["gaps_per_step"] == 0.5
    assert found["longest_gap_us"] == 50
    assert gaps([], steps=1)["device_busy_share"] == 0


def test_losses_that_are_not_numbers_are_far_apart() -> None:
    assert gpu.farthest([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert gpu.farthest([0.01], [0.02]) == pytest.approx(0.01)
    assert gpu.farthest([1.0, float("nan")], [1.0, 2.0]) == float("inf")
