"""Runs on the hub, with a stand-in that keeps them as its cache does: links into a folder of blobs."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import genssl
from genssl import hub, paths, run_info
from genssl.errors import UserError
from genssl.export.card import model_card

from .conftest import call


class Double(ModuleType):
    """Some functions of huggingface_hub on a local folder."""

    def __init__(self, root: Path) -> None:
        super().__init__("huggingface_hub")
        self.root, self.private = root, False

    class CommitOperationAdd(SimpleNamespace):
        path_in_repo: str
        path_or_fileobj: str | bytes

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private = private
        (self.root / name / "blobs").mkdir(parents=True, exist_ok=True)
        (self.root / name / "snapshot").mkdir(exist_ok=True)

    def create_commit(self, name: str, *, operations: list[Any], commit_message: str) -> SimpleNamespace:
        assert commit_message
        for operation in operations:
            content = operation.path_or_fileobj
            data = content if isinstance(content, bytes) else Path(content).read_bytes()
            blob = self.root / name / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            link = self.root / name / "snapshot" / operation.path_in_repo
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / "blobs" / blob.name)
        return SimpleNamespace(repo_url=f"https://hub.test/{name}")

    def snapshot_download(self, name: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert revision == "main"
        assert "model.safetensors" in allow_patterns
        if not (self.root / name).exists():
            raise FileNotFoundError(f"404: no repository {name}\nwith details")
        return str(self.root / name / "snapshot")


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Double:
    library = Double(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    return library


def test_a_pushed_run_is_loaded_and_evaluated_by_its_name(vae_run: Path, double: Double) -> None:
    result = call("push", vae_run, "someone/digits-vae", "--private")
    assert result.exit_code == 0, result.output
    assert "https://hub.test/someone/digits-vae" in result.stderr
    assert double.private
    pushed = genssl.load("hf:someone/digits-vae")
    for mine, theirs in zip(genssl.load(vae_run).parameters(), pushed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    result = call("sample", "hf:someone/digits-vae", "-n", 4, "--out", double.root / "grid.png")
    assert result.exit_code == 0, result.output
    assert (double.root / "grid.png").exists()
    assert genssl.Run.find("hf:someone/digits-vae").config.method == "vae"


def test_the_card_tells_data_numbers_and_commands(vae_run: Path, double: Double) -> None:
    assert call("reconstruct", vae_run, "-n", 4).exit_code == 0
    assert call("fidelity", vae_run, "-n", 16, "--features", "pixels", "--no-memorization").exit_code == 0
    card = model_card(vae_run, "someone/digits-vae")
    assert card.startswith("---\nlibrary_name: genssl\ntags: [genssl, vae, image]\n---\n")
    info = run_info.inspect(vae_run)
    for part in (
        'genssl.load("hf:someone/digits-vae")',
        f"Trained on 120 images (digest {info.training['data_digest'][:12]}); weights {info.digest[:12]}.",
        "| decoder_variance | learned |",
        f"| kl | {info.metrics['kl']:,.6g} |",
        "## Reconstruction",
        "| psnr_db |",
        "| frechet_distance |",
        "genssl train vae",
        "![samples-over-epochs](samples-over-epochs.png)",
    ):
        assert part in card, part
    assert call("push", vae_run, "someone/other", "--dry-run").stdout.startswith("---\n")
    assert not (double.root / "someone" / "other").exists()


def test_the_terms_of_known_data_are_named(vae_run: Path) -> None:
    assert "terms of your own data" in model_card(vae_run, "a/b")
    assert "synthetic: digits rendered by genssl (MIT)." in model_card(paths.shipped_root() / "vae", "a/b")


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "a b/c", "hf:", "/etc/passwd"])
def test_a_name_is_owner_and_name(vae_run: Path, double: Double, name: str) -> None:
    result = call("push", vae_run, name)
    assert result.exit_code == 2
    assert "a run on the hub is hf:OWNER/NAME" in result.stderr
    assert not double.root.exists()


def test_what_the_hub_does_not_have_is_one_line(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        genssl.load("hf:nobody/nothing")
    assert str(caught.value).startswith(
        "cannot fetch hf:nobody/nothing: 404: no repository nobody/nothing (HF"
    )
    assert "\n" not in str(caught.value)
    (double.root / "a" / "b" / "snapshot").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        genssl.load("hf:a/b")


def test_without_the_library_it_is_named(vae_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = call("push", vae_run, "a/b")
    assert result.exit_code == 2
    assert "pip install 'genssl[hub]'" in result.stderr


def test_the_real_library_takes_what_is_asked_of_it() -> None:
    """The functions and their parameters, by which the stand-in is as the library."""
    from inspect import signature

    from .peers import import_peer

    library = import_peer("huggingface_hub")
    assert {"revision", "allow_patterns"} <= set(signature(library.snapshot_download).parameters)
    assert {"private", "exist_ok"} <= set(signature(library.create_repo).parameters)
    assert {"operations", "commit_message"} <= set(signature(library.create_commit).parameters)
    operation = library.CommitOperationAdd(path_in_repo=hub.CARD, path_or_fileobj=b"card")
    assert operation.path_in_repo == "README.md"
