"""Runs on the Hugging Face hub: `hf:OWNER/NAME` where a run is named, and `genssl push`."""

import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from genssl import paths
from genssl.errors import FAILED_RUN, UserError

PREFIX = "hf:"
CARD = "README.md"
HISTORY, CURVES = "history.jsonl", "curves.png"
FILES = (paths.MODEL, paths.CONFIG, HISTORY, CURVES)  # of a run
PICTURES = ("samples-over-epochs.png", "reconstructions-over-epochs.png")
REVISION = "main"
Answer = TypeVar("Answer")


def is_hub(reference: str) -> bool:
    """Whether a REF names a run on the hub."""
    return reference.startswith(PREFIX)


def name_of(reference: str) -> str:
    """`hf:OWNER/NAME` or `OWNER/NAME` -> "OWNER/NAME".

    Raises:
        UserError: it is not written so.
    """
    name = reference.removeprefix(PREFIX)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is None:
        raise UserError(f"cannot read {reference!r}; a run on the hub is {PREFIX}OWNER/NAME")
    return name


def download(reference: str) -> Path:
    """Fetch the run of `hf:OWNER/NAME` into the hub's cache; returns its folder.

    Only the files of a run are fetched, and what is in the cache is not fetched again.

    Raises:
        UserError: huggingface_hub is missing, the hub cannot be reached, or it has no such run.
    """
    name = name_of(reference)
    library = _library()
    folder = Path(
        _asked(
            f"cannot fetch {PREFIX}{name}",
            lambda: library.snapshot_download(name, revision=REVISION, allow_patterns=list(FILES)),
        )
    )
    if not (folder / paths.MODEL).exists():
        raise UserError(f"{PREFIX}{name} has no {paths.MODEL}; it is no run that `genssl push` wrote")
    return folder


def upload(folder: Path, name: str, card: str, *, private: bool) -> str:
    """Write a run and its card to the hub, in one commit; returns the address.

    Args:
        folder: of the run.
        name: OWNER/NAME; made if it is not there.
        card: the text of its README.md.
        private: whether a new one is seen by its owner alone.

    Raises:
        UserError: huggingface_hub is missing, the hub cannot be reached, or it refuses.
    """
    name = name_of(name)
    library = _library()
    present = [file for file in (*FILES, *PICTURES) if (folder / file).is_file()]
    contents: Mapping[str, Any] = {file: str(folder / file) for file in present} | {CARD: card.encode()}
    operations = [
        library.CommitOperationAdd(path_in_repo=file, path_or_fileobj=content)
        for file, content in contents.items()
    ]
    problem = f"cannot push to {PREFIX}{name}"
    _asked(problem, lambda: library.create_repo(name, private=private, exist_ok=True))
    message = f"genssl: {folder.name}"
    commit = _asked(
        problem, lambda: library.create_commit(name, operations=operations, commit_message=message)
    )
    return str(getattr(commit, "repo_url", None) or f"{PREFIX}{name}")


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            "runs on the hub need huggingface_hub; pip install 'genssl[hub]' installs it"
        ) from error


def _asked(problem: str, ask: Callable[[], Answer]) -> Answer:
    """What the hub answers; its errors, of many libraries, in one line.

    Raises:
        UserError: it cannot be reached, or refuses.
    """
    try:
        return ask()
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        hint = "check the name and the network; `hf auth login` signs in"
        raise UserError(f"{problem}: {reason}{offline}; {hint}", FAILED_RUN) from error
