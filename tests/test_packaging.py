"""What the package declares: its types, its oldest dependencies, and the peers that its tests need."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from .peers import import_peer

ROOT = Path(__file__).parent.parent


def project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def bounds(lines: list[str]) -> dict[str, Version]:
    """Names and the one version that each is compared with."""
    requirements = [Requirement(line) for line in lines]
    return {r.name: Version(specifier.version) for r in requirements for specifier in r.specifier}


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    extras = project()["optional-dependencies"]
    tested = [line for name in ("tensorboard", "onnx", "features", "hf", "peers") for line in extras[name]]
    declared = bounds([*project()["dependencies"], *tested])
    lines = (ROOT / "tests" / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    assert declared.items() <= bounds([line for line in lines if not line.startswith("#")]).items()


def test_all_is_every_extra_but_those_of_developers() -> None:
    extras = project()["optional-dependencies"]
    (everything,) = (Requirement(line) for line in extras["all"])
    assert everything.extras == extras.keys() - {"all", "dev", "docs", "peers", "bench"}


def test_a_missing_peer_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENSSL_REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception):
        import_peer("genssl_no_such_package")


def test_a_required_peer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSSL_REQUIRE_PEERS", "1")
    # a skip that is not caught would skip this test, too
    with pytest.raises((ModuleNotFoundError, pytest.skip.Exception)) as caught:
        import_peer("genssl_no_such_package")
    assert caught.type is ModuleNotFoundError


def test_no_test_skips_past_this() -> None:
    word = "importor" + "skip"
    users = [path.name for path in (ROOT / "tests").rglob("*.py") if word in path.read_text(encoding="utf-8")]
    assert users == ["peers.py"]


def test_make_test_requires_the_peers() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8").split("\n\n")
    (rule,) = [text for text in rules if text.startswith("test:")]
    assert "GENSSL_REQUIRE_PEERS=1" in rule


def test_the_package_is_typed() -> None:
    assert files("genssl").joinpath("py.typed").is_file()
