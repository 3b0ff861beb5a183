"""Ablations: their arms, what is reused and resumed, what is said of them, and the command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scipy.stats
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from genssl import checkpoint, files, run_info
from genssl.cli import Program
from genssl.commands import study as study_module
from genssl.config import DDPMConfig, VAEConfig
from genssl.data import loading as load_module
from genssl.data import torchvision_sets
from genssl.errors import FAILED_RUN, INTERRUPTED, UserError
from genssl.eval.result import EvalResult
from genssl.run_info import RunInfo
from genssl.settings import Config
from genssl.studies import ablate as study
from genssl.studies import compare, measures
from genssl.studies.results import (
    KNN,
    Arm,
    ArmRuns,
    Findings,
    Measured,
    is_resolved,
    over_seeds,
    rank,
    verdict,
)
from genssl.training import loop, run, splits
from genssl.training.events import Event, Note
from genssl.training.options import Options
from genssl.training.run_folder import RunFolder

TINY = {"width": 4, "z_dim": 3, "mixture_components": 0, "batch_size": 40, "sample_every": 0}
OPTIONS = Options(device="cpu", save_every=0)

app = typer.Typer(cls=Program, pretty_exceptions_enable=False)
app.callback()(lambda: None)
study_module.register(app)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ablate", *map(str, arguments)])


def spare_curves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunFolder, "write_curves", lambda *_: None)  # most of a tiny run's time


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs of its own, without the figures, which other tests look at."""
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "runs"))
    spare_curves(monkeypatch)
    monkeypatch.setattr(compare, "draw_study", lambda *_: {"study": Image.new("RGB", (1, 1))})
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A study with one change and two seeds, from the command line."""
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENSSL_CHECKPOINTS", str(root))
        spare_curves(patch)
        result = call(*command(digits))
    return root, result


def command(digits: Path) -> list[object]:
    base = {name: value for name, value in TINY.items() if name not in {"batch_size", "sample_every"}}
    settings = [f"--base={name}={value}" for name, value in base.items()]
    return [
        "vae", "--data", digits, "--epochs", 2, "--batch-size", 40, "--seeds", 2, "--device", "cpu",
        "--base=sample_every=2", *settings, "--set=z_dim=2", "--json",
    ]  # fmt: skip


def config(digits: Path, **changes: object) -> Config:
    return VAEConfig(data=str(digits), **{**TINY, "epochs": 1, **changes})


def taken_arms(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Arm]]:
    """Where the command puts its baseline and arms, instead of training them."""
    taken: list[tuple[Config, Arm]] = []

    def take(baseline: Config, arms: list[Arm], *_: object) -> EvalResult:
        taken.extend((baseline, arm) for arm in arms)
        return EvalResult({"rows": []})

    monkeypatch.setattr(study, "ablate", take)
    return taken


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(run, "start", refuse)
    monkeypatch.setattr(run, "resume", refuse)


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


# Arms


def test_every_value_is_an_arm_and_the_baselines_own_is_the_baseline() -> None:
    arms = study.arms_of(DDPMConfig(), {"timesteps": [500, 1000, 1500, 500]}, {})
    assert arms == [
        Arm("timesteps=1000 (baseline)", {}),
        Arm("timesteps=500", {"timesteps": 500}),
        Arm("timesteps=1500", {"timesteps": 1500}),
    ]


def test_all_set_together_are_one_arm_of_what_differs() -> None:
    settings = {"width": "4", "z_dim": "32", "decoder_variance": "learned"}  # 32 is the baseline's
    baseline, arm = study.arms_of(VAEConfig(), {}, settings)
    assert (baseline.name, baseline.changes) == ("baseline", {})
    assert arm.changes == {"width": 4, "decoder_variance": "learned"}
    assert arm.name == "width=4, decoder_variance=learned"


def test_named_changes_and_settings_stand_side_by_side() -> None:
    arms = study.arms_of(DDPMConfig(), {"timesteps": [500]}, {"loss": "mse", "timesteps": "2000"})
    assert [arm.changes for arm in arms] == [{}, {"timesteps": 500}, {"loss": "mse", "timesteps": 2000}]


def test_arms_of_several_values_have_names_that_tell_them_apart() -> None:
    values = {"learning_rate": ["1e-4", "1e-3", "0.01", "0.0010"], "width": ["32", "4"]}
    arms = study.arms_of(VAEConfig(), {}, *study.combinations(values))
    assert [arm.name for arm in arms] == [
        "learning_rate=0.0001, width=32 (baseline)",
        "width=4",
        "learning_rate=0.001",
        "learning_rate=0.001, width=4",
        "learning_rate=0.01",
        "learning_rate=0.01, width=4",
    ]
    assert study.combinations({}) == []


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["simsiam", "--no-stopgrad"], [{"stop_gradient": False}]),
        (["simsiam", "--predictor", "identity"], [{"predictor": "identity"}]),
        (["SimSiam", "--no-predictor"], [{"predictor": "identity"}]),
        (["simsiam", "--no-predictor", "--predictor", "identity"], [{"predictor": "identity"}]),
        (
            ["simsiam", "--predictor", "fixed", "--no-predictor"],
            [{"predictor": "fixed"}, {"predictor": "identity"}],
        ),
        (["barlow-twins", "--proj-dim", 4096], [{"projector_dim": 4096}]),
        (
            ["byol", "--proj-dim", 128, "--proj-dim", 512, "--no-predictor"],
            [{"predictor": "identity"}, {"projector_dim": 128}, {"projector_dim": 512}],
        ),
        (["dssl", "--naive"], [{"naive": True}]),
        (
            ["simsiam", "--no-stopgrad", "--proj-dim", 4096, "--set", "jitter=0", "--set", "hue=0"],
            [{"stop_gradient": False}, {"projector_dim": 4096}, {"jitter": 0.0, "hue": 0.0}],
        ),
        (["vae", "--set", "decoder_variance=learned"], [{"decoder_variance": "learned"}]),
        (
            ["vae", "--set", "learning_rate=1e-3", "--set", "learning_rate=1e-2", "--set=learning_rate=1e-4"],
            [{"learning_rate": 0.001}, {"learning_rate": 0.01}],
        ),
        (
            ["vae", "--set", "width=4", "--set", "z_dim=2", "--set", "width=8", "--set", "z_dim=32"],
            [{"width": 4, "z_dim": 2}, {"width": 4}, {"width": 8, "z_dim": 2}, {"width": 8}],
        ),
        (
            ["vae", "--set", "width=4", "--set", "z_dim=2", "--set", "z_dim=3"],
            [{"width": 4, "z_dim": 2}, {"width": 4, "z_dim": 3}],
        ),
    ],
)
def test_each_named_change_is_an_arm_beside_the_baseline(
    runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], changes: list[dict[str, object]]
) -> None:
    taken = taken_arms(monkeypatch)
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert [arm.changes for _, arm in taken] == [{}, *changes]


def test_settings_of_every_arm_are_the_baselines(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = taken_arms(monkeypatch)
    common = ["--base", "stop_gradient=false", "--knn-every", 2, "--epochs", 7, "--limit", 99, "--seed", 3]
    common += ["--holdout", 0.25]
    assert call("simsiam", *common, "--no-predictor", "--json").exit_code == 0
    baseline, _ = taken[0]
    found = baseline.model_dump()
    expected = {"stop_gradient": False, "knn_every": 2, "epochs": 7, "limit": 99, "seed": 3, "holdout": 0.25}
    assert {name: found[name] for name in expected} == expected


# Training, reusing, resuming


def test_a_second_call_trains_and_measures_nothing(
    trained: tuple[Path, Result], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first = trained
    forbid_training(monkeypatch)
    monkeypatch.setattr(measures, "Trained", None)  # not even opened
    monkeypatch.setattr(load_module, "load", None)  # the data may be gone
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(root))
    again = call(*command(digits))
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == json.loads(first.stdout)


def test_a_run_of_another_command_is_taken(
    digits: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = config(digits)
    mine = run.start(baseline, Options(device="cpu", out=runs / "mine"))
    assert study.find_run(baseline) == study.Found(mine, complete=True)
    for other in ({"seed": 1}, {"z_dim": 2}, {"epochs": 2}):
        assert study.find_run(baseline.updated(other)) is None
    forbid_training(monkeypatch)
    assert study._train(baseline, "x", OPTIONS, lambda event: None) == mine


def test_a_run_ended_by_its_time_limit_is_trained_on(digits: Path, runs: Path) -> None:
    baseline = config(digits, epochs=3)
    cut = run.start(baseline, Options(device="cpu", max_minutes=0))
    assert run_info.inspect(cut).finished
    assert study.find_run(baseline) == study.Found(cut, complete=False)
    assert study._train(baseline, "x", OPTIONS, lambda event: None) == cut
    assert study.find_run(baseline) == study.Found(cut, complete=True)
    assert len(list(runs.iterdir())) == 1


def test_a_run_that_had_its_time_is_taken_as_it_is(
    digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = config(digits, epochs=3)
    cut = run.start(baseline, Options(device="cpu", max_minutes=0.0001))
    assert run_info.inspect(cut).epoch < 3
    assert checkpoint.trained_seconds(cut) >= 0.006
    assert checkpoint.trained_seconds(runs) == 0.0
    resumed: list[Path] = []
    monkeypatch.setattr(run, "resume", lambda path, *_: resumed.append(path))
    for minutes, again in ((0.0001, []), (0.0, []), (60.0, [cut]), (None, [cut])):
        resumed.clear()
        study._train(baseline, "x", Options(device="cpu", max_minutes=minutes), lambda event: None)
        assert resumed == again, minutes


class Killed(Exception):
    """Stands for a kill: nothing of the run's own code sees it coming."""


@pytest.mark.parametrize("at", [0, 2])  # before anything was saved; after
def test_a_study_killed_in_its_second_arm_continues_there(
    digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    baseline = config(digits)
    arms = study.arms_of(baseline, {}, {"z_dim": 2})
    real = loop.Training._take_step

    def dying(
        self: loop.Training, images: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        assert isinstance(self.config, VAEConfig)
        if self.step == at and self.config.z_dim == 2:
            raise Killed
        return real(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_take_step", dying)
        with pytest.raises(Killed):
            study.ablate(baseline, arms, OPTIONS, lambda event: None)
    before = sorted(folder.name for folder in runs.iterdir())
    taken: list[tuple[Config, int]] = []

    def counting(
        self: loop.Training, images: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        taken.append((self.config, self.step))
        return real(self, images, labels)

    monkeypatch.setattr(loop.Training, "_take_step", counting)
    outcome = study.ablate(baseline, arms, OPTIONS, lambda event: None)
    assert taken == [(baseline.updated({"z_dim": 2}), step) for step in range(at, 3)]
    assert sorted(folder.name for folder in runs.iterdir()) == before
    assert [row["runs"][0]["epoch"] for row in outcome.values["rows"]] == [1, 1]


def test_an_interrupt_ends_the_study_and_says_how_to_go_on(
    digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> Path:
        raise UserError("stopped and saved at step 3", INTERRUPTED)

    monkeypatch.setattr(run, "start", stopped)
    result = call("vae", "--data", digits, "--set", "z_dim=2")
    assert result.exit_code == INTERRUPTED
    assert "stopped and saved at step 3; the same ablate command continues" in result.stderr


def test_an_arm_that_breaks_down_is_told_and_the_others_go_on(
    digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run.start

    def breaking(config: Config, *rest: Any) -> Path:
        assert isinstance(config, VAEConfig)
        if config.z_dim == 2:
            raise UserError("step 3 gave a loss that is not finite", FAILED_RUN)
        return real(config, *rest)

    monkeypatch.setattr(run, "start", breaking)
    baseline = config(digits)
    arms = study.arms_of(baseline, {"z_dim": [2, 4]}, {})
    outcome = study.ablate(baseline, arms, OPTIONS, lambda event: None)
    _, broken, sound = outcome.values["rows"]
    assert broken["verdict"] == "failed: seed 0: step 3 gave a loss that is not finite"
    assert broken["numbers"] == {}
    assert sound["numbers"]["loss"]["runs"] == 1
    assert any(note.startswith("z_dim=2 failed, seed 0") for note in outcome.notes)
    with pytest.raises(UserError, match="no arm came to its end: seed 0: step 3") as told:
        study.ablate(baseline, arms[1:2], OPTIONS, lambda event: None)
    assert told.value.code == FAILED_RUN


def test_data_that_cannot_be_had_end_the_study_once_before_any_arm(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(url: str) -> None:
        asked.append(url)
        raise OSError("no network here")

    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torchvision_sets, "require_answer", refuse)
    result = call("vae", "--data", "svhn", "--set", "z_dim=2", "--seeds", 2, "--device", "cpu")
    assert result.exit_code == FAILED_RUN
    assert result.output.count("no network here") == 1
    assert result.stderr.splitlines()[-3].startswith("genssl: cannot download train_32x32.mat (no network")
    assert "arm 1 of 2" not in result.output
    assert len(asked) == 1
    assert not runs.exists()


def test_the_data_of_every_arm_are_loaded_before_the_first_one(
    digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, int]] = []
    real = load_module.load

    def watched(data: str, part: Any, **options: Any) -> Any:
        loaded.append((data, options["image_size"]))
        return real(data, part, **options)

    monkeypatch.setattr(load_module, "load", watched)
    monkeypatch.setattr(run, "start", lambda *_: pytest.fail("an arm has started"))
    arms = [Arm("baseline", {}), Arm("z", {"z_dim": 2}), Arm("elsewhere", {"data": str(digits / "none")})]
    with pytest.raises(UserError, match="no such file or folder"):
        study.ablate(config(digits), arms, OPTIONS, lambda event: None, seeds=2)
    assert loaded == [(str(digits), 32), (str(digits), 32), (str(digits / "none"), 32)]


def test_a_class_too_small_for_a_holdout_ends_the_study_before_any_arm(
    digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "start", lambda *_: pytest.fail("an arm has started"))
    arms = [Arm("baseline", {}), Arm("held out", {"limit": 12, "holdout": 0.5})]
    with pytest.raises(UserError, match=r"class . of digits has 1 image to train on, and a holdout needs 2"):
        study.ablate(config(digits), arms, OPTIONS, lambda event: None)


def test_arms_of_one_seed_see_the_same_images_in_the_same_order(
    digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    real = loop.Training._take_step

    def watching(
        self: loop.Training, images: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        assert isinstance(self.config, VAEConfig)
        seen.setdefault((self.config.z_dim, self.config.seed), []).append(images)
        return real(self, images, labels)

    monkeypatch.setattr(loop.Training, "_take_step", watching)
    baseline = config(digits)
    events: list[Event] = []
    arms = study.arms_of(baseline, {}, {"z_dim": 2})
    study.ablate(baseline, arms, OPTIONS, events.append, seeds=2)
    order = {key: torch.cat(batches) for key, batches in seen.items()}
    assert sorted(order) == [(2, 0), (2, 1), (3, 0), (3, 1)]
    for seed in (0, 1):
        assert torch.equal(order[2, seed], order[3, seed])
    assert not torch.equal(order[3, 0], order[3, 1])
    titles = [text for text in notes(events) if text.startswith("arm ")]
    assert titles[0] == "arm 1 of 2: baseline, seed 0 (1 of 2)"
    assert titles[3] == "arm 2 of 2: z_dim=2, seed 1 (2 of 2)"


@pytest.fixture
def images(digits: Path, tmp_path: Path) -> Path:
    """A copy of the digits, to be changed."""
    return Path(shutil.copytree(digits, tmp_path / "images"))


def change(images: Path) -> None:
    """Other content at the same place."""
    file = sorted((images / "train").rglob("*.png"))[0]
    Image.new("RGB", (32, 32), "teal").save(file)


def test_an_arm_is_trained_again_where_its_data_have_other_images_now(images: Path, runs: Path) -> None:
    baseline = config(images)
    arms = study.arms_of(baseline, {}, {"z_dim": 2})
    study.ablate(baseline, arms, OPTIONS, lambda event: None)
    before = {folder: run_info.trained_digest(folder) for folder in (runs / "arms").iterdir()}
    assert set(before.values()) == {splits.load_splits(baseline, lambda event: None)[0].digest}
    change(images)
    current = splits.load_splits(baseline, lambda event: None)[0].digest
    assert current not in before.values()
    events: list[Event] = []
    # A further arm needs the data, which shows that the others were trained on other images
    outcome = study.ablate(baseline, study.arms_of(baseline, {"z_dim": [2, 4]}, {}), OPTIONS, events.append)
    used = [row["runs"][0] for row in outcome.values["rows"]]
    assert {item["facts"]["train_digest"] for item in used} == {current}
    assert not {item["run"] for item in used} & {folder.name for folder in before}
    told = [text for text in notes(events) if "is not used" in text]
    assert [text.split(" is not used")[0] for text in told] == [
        str(runs / "arms" / f"vae-images-{arm}") for arm in ("baseline", "z_dim-2")
    ]
    assert {folder: run_info.trained_digest(folder) for folder in before} == before


def test_a_run_is_not_measured_on_other_images_than_it_was_trained_on(images: Path, runs: Path) -> None:
    folders = [run.start(config(images, seed=seed), Options(device="cpu")) for seed in (0, 1)]
    change(images)
    with pytest.raises(UserError, match=r"was trained on other images than .*images has; bring those back"):
        compare.compare(folders, "cpu", lambda event: None)
    assert not (folders[0] / measures.KEPT).exists()


def test_what_a_run_was_trained_on_is_in_its_state_where_its_weights_do_not_say(
    images: Path, runs: Path
) -> None:
    folder = run.start(config(images), Options(device="cpu"))
    recorded = run_info.trained_digest(folder)
    info, method = run_info.inspect(folder), checkpoint.load(folder)
    checkpoint.save(method, folder, epoch=info.epoch, finished=True, metrics=info.metrics)
    assert run_info.inspect(folder).training == {}
    assert run_info.trained_digest(folder) == recorded
    (folder / run_info.STATE).unlink()
    assert run_info.trained_digest(folder) is None


# Measuring


def test_a_measure_is_taken_once_for_the_same_weights_and_device(
    trained: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = trained
    info = run_info.inspect(root / "arms" / "vae-digits-baseline")
    taken: list[str] = []

    def test_images(run: measures.Trained) -> dict[str, float]:
        taken.append(run.method.config.method)
        return {"test_images": len(run.splits[1])}

    monkeypatch.setitem(measures.MEASURES, "test_images", test_images)
    monkeypatch.setitem(measures.MEASURES, "default sampling", lambda run: pytest.fail("is known"))
    history = [{"seconds": 1.0, "images_per_second": 2.0, "loss": 3.0, "epoch": 1}]
    half, other = (
        info.folder / "eval" / f".{name}.png.ab12cd_4.tmp" for name in ("ablate-samples", "sample")
    )
    for file in (half, other):
        file.write_text("")
    for _ in range(2):
        found = measures.measure(info, history, torch.device("cpu"), lambda event: None).numbers
        assert (found["test_images"], found["loss"], found["training_seconds"]) == (40, 3.0, 1.0)
        assert found["sampling_seconds"] > 0
    assert taken == ["vae"]
    assert not half.exists()  # what a killed study left
    assert other.exists()  # another command may be at it
    other.unlink()
    kept = files.read_json(info.folder / measures.KEPT)
    for changed in ("weights_sha256", "device"):
        files.write_json(info.folder / measures.KEPT, {**kept, changed: "another"})
        monkeypatch.setitem(measures.MEASURES, "default sampling", lambda run: {"sampling_seconds": -1.0})
        found = measures.measure(info, history, torch.device("cpu"), lambda event: None).numbers
        assert found["sampling_seconds"] == -1.0
    files.write_json(info.folder / measures.KEPT, kept)


def test_a_method_that_does_not_generate_has_no_sampling_time() -> None:
    still: Any = SimpleNamespace(method=object())
    assert measures.sampling(still) == {}


# Comparing


def arm_of(name: str, changes: dict[str, Any], *numbers: dict[str, float]) -> ArmRuns:
    info = RunInfo(Path("nowhere"), VAEConfig(), 70, True, {}, "")
    return ArmRuns(Arm(name, changes), [Measured(info, [], Findings(values)) for values in numbers])


def test_mean_and_standard_deviation_over_seeds() -> None:
    number = over_seeds([1.0, 2.0, 6.0])
    assert (number.mean, number.runs) == (3.0, 3)
    assert number.std == pytest.approx(7**0.5)
    assert over_seeds([4.0]).std is None


def test_a_verdict_is_computed_from_the_numbers() -> None:
    base = arm_of("baseline", {}, {"test_loss": 2889.0, "training_seconds": 100, "sampling_seconds": 1})
    arm = arm_of("z", {"z_dim": 2}, {"test_loss": 2391.0, "training_seconds": 140, "sampling_seconds": 0.5})
    losses, times = "test_loss 2889 -> 2391 (-17 %, not resolved: one seed)", "training 1.4x slower"
    assert verdict(arm, base) == f"{losses}; {times}; sampling 2x faster"
    assert verdict(base, base) == "the baseline: test_loss 2889"
    other = arm_of("v", {"decoder_variance": "learned"}, {"test_loss": -50.0, "training_seconds": 105})
    expected = "test_loss 2889 -> -50 (not comparable: another loss); training about as fast"
    assert verdict(other, base) == expected
    slower = arm_of("w", {"width": 64}, {"training_seconds": 120})  # within a machine's own noise
    assert verdict(slower, base) == "training about as fast"
    assert verdict(arm_of("w", {"width": 64}, {"training_seconds": 130}), base) == "training 1.3x slower"


def test_a_time_limit_makes_no_arm_as_fast_as_another() -> None:
    base = arm_of("baseline", {}, {"training_seconds": 300, "images_per_second": 100})
    slow = arm_of("p", {"projector_dim": 4096}, {"training_seconds": 300, "images_per_second": 40})
    info = replace(slow.runs[0].info, epoch=28)
    limited = replace(slow, runs=[replace(slow.runs[0], info=info)])
    assert verdict(limited, base) == "training 2.5x slower; 28 epochs against 70"


@pytest.mark.parametrize(
    ("numbers", "changes", "reason"),
    [
        ("test_loss", {"label_smoothing": 0.1}, "another loss"),
        ("test_loss", {"timestep_sampling": "uniform"}, "another loss"),
        ("loss", {"prediction": "v"}, "another loss"),
        ("loss", {"view_size": 16}, "another loss"),
        ("bits_per_dim", {"image_size": 16}, "other data"),
        ("bits_per_dim", {"data": "cifar10"}, "other data"),
        ("test_accuracy", {"data": "cifar10"}, "other data"),
    ],
)
def test_what_does_not_compare_is_neither_judged_nor_ranked(
    numbers: str, changes: dict[str, Any], reason: str
) -> None:
    base, arm = arm_of("baseline", {}, {numbers: 0.5}), arm_of("other", changes, {numbers: 0.75})
    assert f"(not comparable: {reason})" in verdict(arm, base)
    assert rank([base, arm], numbers)[1].remark == f"not comparable: {reason}"


def test_a_classifier_is_judged_by_its_accuracy() -> None:
    base = arm_of("baseline", {}, {"test_accuracy": 0.9, "test_loss": 0.3})
    arm = arm_of("s", {"label_smoothing": 0.1}, {"test_accuracy": 0.93, "test_loss": 0.75})
    expected = "test accuracy 90.0 % -> 93.0 % (+3.0 percentage points, not resolved: one seed)"
    assert verdict(arm, base) == expected
    assert [item.arm for item in rank([base, arm], "test_accuracy")] == ["s", "baseline"]


def test_a_verdict_is_about_the_validation_loss_of_runs_with_a_holdout() -> None:
    base = arm_of("baseline", {}, {"validation_loss": 10.0, "loss": 9.0})
    arm = arm_of("z", {"z_dim": 2}, {"validation_loss": 11.0, "loss": 7.0})
    assert verdict(arm, base) == "validation_loss 10 -> 11 (+10 %, not resolved: one seed)"
    held_out = arm_of("h", {"holdout": 0.2}, {"validation_loss": 11.0})
    assert verdict(held_out, base) == "validation_loss 10 -> 11 (not comparable: another loss)"


def test_a_verdict_over_seeds_is_welchs() -> None:
    base = arm_of(
        "baseline", {}, {"loss": 10.0, "training_seconds": 9}, {"loss": 12.0, "training_seconds": 5}
    )
    near = arm_of("a", {}, {"loss": 11.0, "training_seconds": 99}, {"loss": 13.0, "training_seconds": 99})
    far = arm_of("b", {}, {"loss": 20.0}, {"loss": 22.0})
    assert verdict(near, base) == "loss 11 -> 12 (+9.1 %, not resolved); training 14x slower"
    assert verdict(far, base) == "loss 11 -> 21 (+91 %, resolved)"
    slow = arm_of("baseline", {}, {"training_seconds": 20.0}, {"training_seconds": 40.0})
    noisy = arm_of("d", {}, {"training_seconds": 45.0}, {"training_seconds": 25.0})
    assert verdict(noisy, slow) == "training about as fast"  # 1.2x, which is within the spread
    short = arm_of("c", {}, {"loss": 11.0, "training_seconds": 2}, {"loss": 13.0, "training_seconds": 3})
    assert "training" not in verdict(short, base)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_welchs_test_is_scipys_on_the_values(shift: float) -> None:
    first, second = [1.0, 1.4, 0.7, 1.1], [1.0 + shift, 3.1 + shift, 2.0 + shift]
    p = scipy.stats.ttest_ind(first, second, equal_var=False).pvalue
    assert is_resolved(over_seeds(first), over_seeds(second)) == (p < 0.05)


def test_one_seed_is_judged_by_its_test_images() -> None:
    def verdict_of(second: float, images: int) -> str:
        base = arm_of("baseline", {}, {KNN: 0.5, "test_images": images})
        return verdict(arm_of("a", {}, {KNN: second, "test_images": images}), base)

    # the difference of two shares near a half over 10,000 images has a standard error of 0.0071
    assert verdict_of(0.513, 10_000).endswith("(+1.3 percentage points, not resolved)")
    assert verdict_of(0.515, 10_000).endswith(
        "+1.5 percentage points, resolved over the test images, one seed)"
    )
    assert verdict_of(0.515, 1_000).endswith("(+1.5 percentage points, not resolved)")
    bound = {"bits_per_dim": 3.0, "bits_per_dim_standard_error": 0.03}
    base = arm_of("baseline", {}, bound)
    near, far = (arm_of("a", {}, {**bound, "bits_per_dim": value}) for value in (3.08, 3.09))
    assert verdict(near, base) == "bits_per_dim 3 -> 3.08 (+2.7 %, not resolved)"
    assert verdict(far, base) == "bits_per_dim 3 -> 3.09 (+3.0 %, resolved over the test images, one seed)"
    assert "bits_per_dim_standard_error" not in base.numbers()
    two_seeds = arm_of("baseline", {}, bound, bound)
    assert verdict(far, two_seeds) == "bits_per_dim 3 -> 3.09 (+3.0 %, not resolved: one seed)"


# The command


def test_the_command_leaves_a_figure_and_pure_json(trained: tuple[Path, Result]) -> None:
    root, result = trained
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    folder = root / "ablate-vae-digits-z_dim"
    assert json.loads((folder / "ablate.json").read_text()) == found
    assert Image.open(folder / "ablate.png").size[0] > 800
    assert (found["method"], found["baseline"], found["epochs"]) == ("vae", "baseline", 2)
    baseline, arm = found["rows"]
    assert (baseline["changes"], arm["changes"]) == ({}, {"z_dim": 2})
    assert [each["seed"] for each in arm["runs"]] == [0, 1]
    number = arm["numbers"]["test_loss"]
    values = [each["numbers"]["test_loss"] for each in arm["runs"]]
    assert number["mean"] == pytest.approx(sum(values) / 2)
    assert number["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert arm["verdict"].startswith("test_loss ")
    assert any("short runs (2 epochs)" in note for note in found["notes"])
    assert not any("one seed" in note for note in found["notes"])
    samples = Image.open(root / "arms" / "vae-digits-z_dim-2" / measures.SAMPLES)
    assert samples.size == (4 * 34 + 2, 4 * 34 + 2)


def test_the_command_shows_a_table_and_verdicts(
    trained: tuple[Path, Result], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(trained[0]))
    forbid_training(monkeypatch)
    arguments = [*command(digits)[:-1], "--seeds", 1, "--out", tmp_path / "study.svg"]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    for words in ("ablation of vae", "test_loss", "the baseline: test_loss", "note: one seed per arm"):
        assert words in result.stdout, words
    assert "arm 2 of 2: z_dim=2" in result.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"study.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae", "--timesteps", 500], "a vae has no timesteps (that is for ddpm); --set ablates its own"),
        (["vae", "--no-stopgrad"], "a vae has no stop_gradient (that is for simsiam, dssl)"),
        (["simsiam", "--naive"], "a simsiam has no naive (that is for dssl)"),
        (["barlow-twins", "--no-predictor"], "a barlow_twins has no predictor (that is for"),
        (["byol", "--predictor", "fixed"], "predictor must be 'mlp' or 'identity' (got 'fixed')"),
        (["simsiam", "--proj-dim", 0], "projector_dim must be greater than 0"),
        (["simsiam", "--proj-dim", 2048], "projector_dim=2048 is the baseline"),
        (
            ["simsiam"],
            "ablate a simsiam with --no-stopgrad or --predictor or --no-predictor or --proj-dim or",
        ),
        (["vae"], "ablate a vae with --set KEY=VALUE (of a vae's settings: width, z_dim"),
        (["ddpm"], "ablate a ddpm with --timesteps or --set KEY=VALUE"),
        (["ddpm", "--timesteps", 1000], "timesteps=1000 is the baseline"),
        (["vae", "--set", "z_dim=32"], "z_dim=32 is the baseline"),
        (["vae", "--set", "widht=3"], "did you mean 'width'"),
        (["vae", "--set", "width"], "--set takes key=value"),
        (["vae", "--base", "width", "--set", "z_dim=2"], "--base takes key=value"),
        (
            ["vae", "--base", "width=4", "--base", "width=8", "--set", "z_dim=2"],
            "--base width has 2 values (4, 8)",
        ),
        (["vae", "--set", "z_dim=2", "--set", "z_dim=0"], "z_dim must be greater than 0"),
        (["vae", "--set", "z_dim=32", "--set", "z_dim=32.0"], "z_dim=32 is the baseline"),
        (["vae", "--set", "z_dim=0"], "z_dim must be greater than 0"),
        (["vea", "--set", "z_dim=2"], "did you mean 'vae'"),
        (["vae", "--set", "z_dim=2", "--data", "nowhere.zip"], "nowhere.zip"),
        (["vae", "--set", "z_dim=2", "--out", __file__], "is a file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(runs: Path, arguments: list[object], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line
    assert not runs.exists() or not list(runs.iterdir())
