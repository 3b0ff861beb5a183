"""The notebook and the batch script do what their pages say, as far as that shows without Colab and SLURM."""

import ast
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from . import test_docs

NOTEBOOK = test_docs.ROOT / "docs" / "colab.ipynb"
SCRIPT = test_docs.ROOT / "docs" / "slurm.sh"
STUBS = {
    "genssl": 'printf "%s|" "$@" >> calls; echo "$GENSSL_CACHE" >> calls; exit "$(cat code)"',
    "patient": 'trap "sleep 0.3; exit 143" TERM; touch ready; for _ in {1..500}; do sleep 0.02; done',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "squeue": "cat state",
    "scontrol": 'if [ "$1" = show ]; then printf "a\\nb\\n"; else echo "$@" >> requeued; fi',
}


def cells(kind: str, file: Path = NOTEBOOK) -> list[dict[str, Any]]:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def code_lines() -> list[str]:
    return [line for cell in cells("code") for line in "".join(cell["source"]).splitlines()]


def check_commands(lines: list[str], page: Path) -> None:
    assert lines
    page.write_text("```bash\n" + "\n".join(lines) + "\n```\n", encoding="utf-8")
    test_docs.test_every_written_command_exists_with_its_options(page)


@pytest.mark.parametrize("file", [NOTEBOOK, NOTEBOOK.with_name("assignment.ipynb")], ids=lambda f: f.stem)
def test_a_notebook_is_one_and_holds_no_results(file: Path) -> None:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    markdown, code = cells("markdown", file), cells("code", file)
    assert markdown
    assert code
    assert len(markdown) + len(code) == len(identities)
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert "".join(cell["source"]).count("\n") < 15


def test_the_notebook_runs_commands_that_exist(tmp_path: Path) -> None:
    lines = [line.removeprefix("!") for line in code_lines() if line.startswith("!genssl ")]
    check_commands(lines, tmp_path / "page.md")
    told = [name for cell in cells("markdown") for name in re.findall(r"`(-[^`]*)`", "".join(cell["source"]))]
    assert all(any(name in line for line in lines) for name in told), told


def test_the_notebook_is_python_but_for_its_magic() -> None:
    plain = [re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in code_lines()]
    tree = ast.parse("\n".join(plain))
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for line in code_lines():
        if line.lstrip().startswith(("!", "%")):
            assert set(re.findall(r"\{(\w+)\}", line)) <= stored, line


def test_the_script_runs_commands_that_exist(tmp_path: Path) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    example = re.findall(r"sbatch docs/slurm.sh (.*)", text)
    assert len(example) == 1
    check_commands([*re.findall(r"\bgenssl [a-z].*", code), f"genssl train {example[0]}"], tmp_path / "p.md")


def test_the_script_has_its_directives_before_its_first_command() -> None:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert any(line.startswith("#SBATCH") for line in lines[:first])
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # SLURM reads no further


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stand-ins for SLURM's commands and for genssl."""
    for name, text in STUBS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", "/submitted/here")
    monkeypatch.delenv("GENSSL_CACHE", raising=False)
    return tmp_path


def submit(cluster: Path, code: int, state: str, *arguments: str) -> int:
    (cluster / "code").write_text(str(code))
    (cluster / "state").write_text(state)
    return subprocess.run(["bash", SCRIPT, *arguments], cwd=cluster, check=False).returncode


def requeued(cluster: Path) -> list[str]:
    file = cluster / "requeued"
    return file.read_text().splitlines() if file.exists() else []


def test_a_job_is_queued_again_until_its_run_is_complete(cluster: Path) -> None:
    arguments = ["vae", "--data", "two words.zip", "--out", "runs/vae"]
    assert submit(cluster, 143, "RUNNING", *arguments) == 143
    assert requeued(cluster) == ["requeue 7"]
    assert submit(cluster, 0, "RUNNING", *arguments) == 0
    assert requeued(cluster) == ["requeue 7"]
    call = "train|vae|--data|two words.zip|--out|runs/vae|--auto-resume|/submitted/here/genssl-cache"
    assert (cluster / "calls").read_text().splitlines() == [call, call]


@pytest.mark.parametrize(("code", "state"), [(143, "COMPLETING"), (143, ""), (1, "RUNNING"), (2, "RUNNING")])
def test_a_job_that_was_cancelled_or_failed_is_not(cluster: Path, code: int, state: str) -> None:
    assert submit(cluster, code, state, "vae") == code
    assert requeued(cluster) == []


def test_the_script_outlives_the_signal_that_stops_the_training(cluster: Path) -> None:
    (cluster / "bin" / "genssl").write_text(f"#!/bin/bash\n{STUBS['patient']}\n")
    (cluster / "state").write_text("RUNNING")
    job = subprocess.Popen(["bash", SCRIPT, "vae"], cwd=cluster, start_new_session=True)
    until = time.monotonic() + 20
    while not (cluster / "ready").exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGTERM)  # to the training and to the shell
    assert job.wait(timeout=20) == 143
    assert requeued(cluster) == ["requeue 7"]


def test_the_lines_for_several_nodes_tell_every_process_which_one_it_is(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (test_docs.ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```\n(#SBATCH --nodes=2\n.*?)```", text, re.DOTALL)
    wanted = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT"; printf "%s|" "$@"'
    (cluster / "bin" / "genssl").write_text(f"#!/bin/bash\n{wanted}\n")
    where = {"PROCID": "5", "LOCALID": "1", "NTASKS": "8", "JOB_NODELIST": "a,b", "JOB_ID": "1234567"}
    for name, value in where.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    result = subprocess.run(
        ["bash", "-c", lines, "script", "vae", "--data", "two words.zip"],
        cwd=cluster, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout == "5 1 8 a 24567\ntrain|vae|--data|two words.zip|--auto-resume|"
