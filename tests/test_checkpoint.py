import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks import ship
from genssl import checkpoint, files, paths, run_info, runs
from genssl.config import VAEConfig
from genssl.errors import UserError
from genssl.eval.result import header_of
from genssl.models.build import build

CONFIG = VAEConfig(data="synthetic", width=4, z_dim=3, epochs=3)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def saved(folder: Path, finished: bool = True, seed: int = 0, epoch: int = 3) -> Path:
    folder.mkdir(parents=True)
    method = build(CONFIG.updated({"seed": seed}))
    checkpoint.save(method, folder, epoch=epoch, finished=finished, metrics={"loss": 1.5})
    return folder


def test_what_is_loaded_is_what_was_saved(root: Path) -> None:
    folder = saved(root / "a", seed=4)
    method = checkpoint.load(folder)
    assert method.config == CONFIG.updated({"seed": 4})
    expected = build(method.config).state_dict()
    for name, value in method.state_dict().items():
        assert torch.equal(value, expected[name])
    info = run_info.inspect(folder)
    assert (info.epoch, info.finished, info.metrics, info.name) == (3, True, {"loss": 1.5}, "a")
    assert run_info.verify(folder) == []


def test_a_run_that_ships_has_half_the_size_and_no_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = saved(root / "a"), tmp_path / "shipped"
    line = f"genssl --checkpoints {root} train vae --yes --epochs 3 --init {root}/b/vae --tag a"
    files.write_json(folder / "environment.json", {"command": line})
    monkeypatch.setattr(paths, "shipped_root", lambda: target)
    monkeypatch.setattr("sys.argv", ["ship", str(folder), "--name", "small"])
    ship.main()
    expected = "genssl train vae --epochs 3 --init vae --out checkpoints/shipped/small"
    assert json.loads((target / "small" / "environment.json").read_text()) == {"command": expected}
    assert (target / "small" / "model.safetensors").stat().st_size < 0.7 * (
        folder / "model.safetensors"
    ).stat().st_size
    whole, half = checkpoint.load(folder).state_dict(), checkpoint.load(target / "small").state_dict()
    for name, value in whole.items():
        assert half[name].dtype == value.dtype
        # a number of float16 has 11 binary digits
        torch.testing.assert_close(half[name], value, rtol=2**-11, atol=1e-7)


def test_the_header_of_a_picture_has_the_part_of_an_epoch(root: Path) -> None:
    folder = root / "cut"
    folder.mkdir(parents=True)
    checkpoint.save(build(CONFIG), folder, epoch=1, finished=True, metrics={"epoch": 1.55})
    assert header_of(checkpoint.load(folder), "8 samples") == "vae on synthetic, epoch 1.55: 8 samples"


def test_a_method_is_its_newest_finished_run(root: Path) -> None:
    for age, name in enumerate(("old", "new", "unfinished")):
        file = saved(root / name, finished=name != "unfinished") / run_info.MODEL
        os.utime(file, (1000 + age, 1000 + age))
    assert runs.find("vae") == root / "new"
    assert runs.find("unfinished") == root / "unfinished"
    assert runs.find(str(root / "old" / run_info.MODEL)).name == run_info.MODEL


def test_a_run_that_time_stopped_comes_after_finished_ones(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "shipped_root", lambda: root.parent / "shipped")
    within_first = saved(root / "within-first", epoch=0)
    assert runs.find("vae") == within_first  # better than nothing
    shipped = saved(root.parent / "shipped" / "vae")
    assert runs.find("vae") == shipped
    assert runs.find("vae", data="synthetic") == within_first
    stopped = saved(root / "stopped", epoch=2)
    assert run_info.inspect(stopped).state == "stopped by time"
    assert runs.find("vae") == stopped
    finished = saved(root / "finished")
    for age, folder in enumerate((finished, stopped, within_first)):
        os.utime(folder / run_info.MODEL, (1000 + age, 1000 + age))
    assert runs.find("vae") == finished
    assert runs.find_unfinished("vae") == within_first


@pytest.mark.parametrize(
    ("step", "epochs"),
    [(0, 0), (1, 0.01), (350, 0.35), (999, 0.99), (1000, 1), (3001, 3.01), (3427, 3.43), (4999, 4.99)],
)
def test_a_part_of_an_epoch_is_never_a_whole_one(step: int, epochs: float) -> None:
    assert run_info.epochs_of(step, 1000) == epochs
    assert run_info.epochs_trained(step // 1000, {"epoch": epochs}) == epochs
    assert isinstance(run_info.epochs_of(step, 1000), int) == (step % 1000 == 0)


def test_how_far_a_run_is_in_words() -> None:
    assert run_info.progress_of(3.43, 10) == "3.43 of 10"
    assert run_info.progress_of(10, 10) == "10"
    assert run_info.epochs_trained(3, {"epoch": 4}) == 3  # as earlier versions recorded a part of the fourth
    assert run_info.epochs_trained(3, {}) == 3
    assert [run_info.state_of(*each) for each in ((True, 3, 3), (True, 2, 3), (False, 3, 3))] == [
        "finished", "stopped by time", "unfinished",
    ]  # fmt: skip


def test_a_method_without_a_finished_run_says_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "shipped_root", lambda: root / "shipped")
    saved(root / "half", finished=False)
    with pytest.raises(UserError, match=r"no finished vae run.*genssl train vae.*unfinished half"):
        runs.find("vae")


def test_shipped_weights_are_taken_where_nothing_was_trained(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "shipped_root", lambda: root.parent / "shipped")
    saved(root.parent / "shipped" / "vae")
    assert runs.find("vae") == root.parent / "shipped" / "vae"


def test_another_method_is_refused(root: Path) -> None:
    saved(root / "a")
    with pytest.raises(UserError, match="holds a vae, and this needs a ddpm"):
        runs.find("a", method="ddpm")


@pytest.mark.parametrize(
    ("data", "tag", "name"),
    [
        ("svhn", None, "vae-svhn"),
        ("/some/where/photos.tar.gz", None, "vae-photos"),
        ("my data/ü x", "a/b", "vae-x-a-b"),
        ("..", "-", "vae-data-data"),
    ],
)
def test_run_names_suit_every_file_system(
    data: str, tag: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert runs.run_name(VAEConfig(data=data), tag) == name


def test_runs_started_at_once_get_folders_of_their_own(root: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: runs.new_folder(CONFIG), range(8)))
    folders = [folder for folder, _ in made]
    assert len(set(folders)) == 8
    assert {folder.name for folder in folders} == {
        "vae-synthetic",
        *(f"vae-synthetic-{k}" for k in range(2, 9)),
    }


def test_an_unreadable_run_does_not_hide_the_others(root: Path) -> None:
    saved(root / "good")
    (root / "bad").mkdir()
    (root / "bad" / run_info.MODEL).write_bytes(b"nonsense")
    assert [info.name for info in runs.known()] == ["good"]
