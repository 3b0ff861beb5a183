"""Run folders and data of somebody else: what they hold is read as data, within bounds, and shown as text."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from genssl import checkpoint, cli, files, run_info
from genssl.errors import UserError, explain, printable
from tests.conftest import call

SECRET = "S3CRET"
ESCAPE = "\x1b]52;c;aGk=\x07"  # writes to the clipboard of a terminal
DEEP = "[" * 20_000 + "]" * 20_000
RUN_FILES = (
    "model.safetensors",
    "config.json",
    "environment.json",
    "history.jsonl",
    "eval/sample.json",
    "SHIPPED.txt",
)


@pytest.fixture(scope="session")
def measured_run(vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with numbers in eval/, none of other tests."""
    run = tmp_path_factory.mktemp("measured") / vae_run.name
    shutil.copytree(vae_run, run, ignore=shutil.ignore_patterns("eval"))
    assert call("sample", run, "-n", 4).exit_code == 0
    shutil.copy(run / "eval" / "sample-n4.json", run / "eval" / "sample.json")
    return run


@pytest.fixture
def run(measured_run: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(measured_run, tmp_path / "runs" / "odd"))


def signed(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a file whose digests are right, as whoever made it by hand would."""
    files.write_tensors(file, tensors, metadata)


def is_polite(output: str) -> bool:
    return "Traceback" not in output and "unexpected error" not in output


# Text from outside


def test_what_moves_a_cursor_is_spelled_out() -> None:
    assert printable("a\x1b[2J\n\u202e\0é 猫") == "a\\x1b[2J\\x0a\\x202e\\x00é 猫"
    assert str(UserError("one\ntwo", files=["three\x1b"])) == "one\\x0atwo\nthree\\x1b"


def test_no_name_or_setting_reaches_the_terminal_as_it_is(run: Path) -> None:
    odd = run.with_name(f"{ESCAPE}\nodd")
    run.rename(odd)
    tensors, metadata = files.read_tensors(odd / "model.safetensors")
    config = json.loads(metadata["config"]) | {"data": f"no{ESCAPE}\nsuch"}
    metrics = json.loads(metadata["metrics"]) | {f"loss{ESCAPE}": f"x{ESCAPE}"}
    metadata |= {"config": json.dumps(config), "metrics": json.dumps(metrics)}
    signed(odd / "model.safetensors", tensors, metadata)
    (odd / "eval" / f"{ESCAPE}.json").write_text("[]")
    for command in (
        ["runs", "show", odd], ["runs", "verify", odd], ["reconstruct", odd], ["sample", odd, "-n", 2],
        ["report", odd, "--out", odd.with_name("x.html")], ["--checkpoints", odd.parent, "runs", "list"],
        ["train", "vae", "--data", f"no{ESCAPE}", "--dry-run"], ["train", f"vae{ESCAPE}"], [f"{ESCAPE}"],
    ):  # fmt: skip
        output = call(*command).output
        assert all(line.isprintable() for line in output.split("\n")), output
        assert "\\x1b" in output or command[-1] == "list", command


def test_further_lines_are_only_those_of_the_program(run: Path) -> None:
    config = json.loads((run / "config.json").read_text()) | {"method": "x\ngenssl: all is well"}
    (run / "config.json").write_text(json.dumps(config))
    output = call("train", "--resume", run).output
    assert output.count("\n") == 1, output


def test_what_the_program_says_is_printable_whoever_wrote_it(capsys: pytest.CaptureFixture[str]) -> None:
    cli._tell(f"a{ESCAPE}\nb", 2)
    assert capsys.readouterr().err == "genssl: a\\x1b]52;c;aGk=\\x07\nb\n"


# Links


@pytest.mark.parametrize("name", [*RUN_FILES, "about.json"])
def test_a_report_shows_nothing_that_a_link_leads_to(name: str, run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"title": SECRET, "command": SECRET, "epoch": 1}))
    file = run.parent / name if name == "about.json" else run / name
    file.unlink(missing_ok=True)
    file.symlink_to(secret)
    result = call("report", run.parent, "--out", tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert SECRET not in page
    assert f"{file} is a link out of its folder" in " ".join(result.output.split())
    assert "vae" in page  # the rest is there


def test_a_folder_of_pictures_elsewhere_is_not_shown(run: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "config.json").write_text(json.dumps({"secret": SECRET}))
    Image.new("RGB", (20, 10)).save(tmp_path / "private" / "x.png")
    shutil.rmtree(run / "eval")
    (run / "eval").symlink_to(tmp_path / "private")
    output = call("report", run, "--out", tmp_path / "x.html").output
    assert "x.png is a link out of its folder" in output
    assert SECRET not in (tmp_path / "x.html").read_text()


def test_links_within_a_run_and_to_a_run_are_followed(run: Path, tmp_path: Path) -> None:
    (run / "eval" / "again.json").symlink_to(run / "eval" / "sample.json")
    (tmp_path / "elsewhere").symlink_to(run)
    assert files.read_json(tmp_path / "elsewhere" / "eval" / "again.json")["images"] == 4


def test_nothing_is_written_through_a_link_out_of_a_run(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious.json"
    target.write_text("mine")
    for name, command in (
        ("eval/sample-n3.json", ["sample", run, "-n", 3]),
        ("curves.png", ["train", "--resume", run, "--epochs", 3]),
        ("config.json", ["train", "--resume", run, "--epochs", 4]),
    ):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)
        result = call(*command)
        assert result.exit_code != 0
        assert "is a link out of its folder" in result.output
        assert target.read_text() == "mine"


def as_hub_cache(run: Path, folder: Path) -> Path:
    """The run as the hub's cache has it: every file is a link to one that its digest names."""
    snapshot, blobs = folder / "snapshots" / "rev", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, name in enumerate(RUN_FILES[:4]):
        shutil.copy(run / name, blobs / f"{i:040x}")
        (snapshot / name).symlink_to(Path("..", "..", "blobs", f"{i:040x}"))
    return snapshot


def test_weights_are_read_from_the_cache_of_the_hub_and_nothing_there_is_written(
    run: Path, tmp_path: Path
) -> None:
    snapshot = as_hub_cache(run, tmp_path / "models--a--b")
    before = {file: file.read_bytes() for file in (tmp_path / "models--a--b" / "blobs").iterdir()}
    weights, linked = (checkpoint.load(folder).state_dict() for folder in (run, snapshot))
    assert all(torch.equal(linked[name], weights[name]) for name in weights)
    for command in (
        ["sample", snapshot, "-n", 2], ["runs", "show", snapshot], ["reconstruct", snapshot, "-n", 2],
        ["train", "--config", snapshot, "--dry-run"],
    ):  # fmt: skip
        result = call(*command)
        assert result.exit_code == 0, result.output
        assert is_polite(result.output)
    for command in (
        ["train", "--resume", snapshot, "--epochs", 3],
        ["features", snapshot, "--out", snapshot / "model.safetensors"],
        ["features", snapshot, "--out", snapshot / "config.json"],
    ):
        assert call(*command).exit_code != 0
    with pytest.raises(UserError, match="is a link out of its folder"):
        files.write_bytes(snapshot / "model.safetensors", b"")
    assert {file: file.read_bytes() for file in before} == before


def test_weights_on_another_disk_are_read_where_they_are_named_and_not_where_they_are_found(
    run: Path, tmp_path: Path
) -> None:
    (run / "model.safetensors").rename(tmp_path / "weights")
    (run / "model.safetensors").symlink_to(tmp_path / "weights")
    for reference in (run, run / "model.safetensors", run.name):
        assert call("--checkpoints", run.parent, "sample", reference, "-n", 2).exit_code == 0
    listed = json.loads(call("--checkpoints", run.parent, "runs", "list", "--json").output)
    assert [entry["state"] for entry in listed] == ["no weights yet, damaged, or a link elsewhere"]
    assert "is a link out of its folder" in call("report", run, "--out", tmp_path / "x.html").output


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "folder", "text", "record", "tensors", "nothing"])
def test_a_link_to_anything_else_is_refused_at_once_and_shows_nothing_of_it(
    kind: str, name: str, run: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    target = Path(kind) if kind == "/dev/zero" else tmp_path / "secret"
    match kind:
        case "pipe":
            os.mkfifo(target)
        case "folder":
            target.mkdir()
        case "text":
            target.write_text(f"{SECRET}:x:0:0")
        case "record":
            target.write_text(json.dumps({"method": SECRET, "data": SECRET}))
        case "tensors":
            config = json.dumps({"method": SECRET})
            save_file({SECRET: torch.zeros(2)}, target, {"format": "1", "config": config, "epoch": SECRET})
    (run / name).unlink()
    (run / name).symlink_to(target)
    start = time.monotonic()
    commands = [["train", "--config", run, "--dry-run"]]
    if name == "model.safetensors":
        commands = [["sample", run, "-n", 2], ["runs", "show", run], ["sample", run / name]]
    for command in (*commands, ["runs", "verify", run]):
        result = call(*command)
        assert result.exit_code in {1, 2}, result.output
        assert is_polite(result.output)
        assert SECRET not in result.output
        # The first bytes of the text, as the length of a header
        assert str(int.from_bytes(SECRET.encode() + b":x", "little")) not in result.output
    assert time.monotonic() - start < 10


# What is no file, and files without an end


@pytest.mark.parametrize("name", [*RUN_FILES, "state.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, run: Path, tmp_path: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    start = time.monotonic()
    for command in (
        ["report", run, "--out", tmp_path / "x.html"], ["runs", "show", run], ["runs", "verify", run],
        ["train", "--config", run, "--dry-run"], ["train", "--resume", run, "--epochs", 2],
    ):  # fmt: skip
        assert is_polite(call(*command).output)
    assert (tmp_path / "x.html").exists()
    assert time.monotonic() - start < 10


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_a_device_and_a_huge_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="no regular file"):
        files.read_json(tmp_path / "zeros.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(UserError, match="larger than"):
        files.read_json(tmp_path / "huge.json")


# What cannot be read hides nothing else


@pytest.mark.parametrize(
    "text", [DEEP, '{"epoch": ' + "9" * 6000 + "}", "[]", "null", "1", '{"epoch": NaN}', "\udc80"]
)
@pytest.mark.parametrize("name", RUN_FILES[1:5])
def test_one_bad_file_is_named_and_the_rest_is_shown(name: str, text: str, run: Path, tmp_path: Path) -> None:
    (run / name).write_bytes(text.encode(errors="surrogateescape"))
    commands: list[list[object]] = [["runs", "verify", run], ["runs", "show", run]]
    if not name.startswith("eval"):  # which training does not read
        commands.append(["train", "--resume", run, "--epochs", 3])
    for command in commands:
        assert is_polite(call(*command).output)
    result = call("report", run, "--out", tmp_path / "x.html")
    assert result.exit_code == 0
    assert name in result.output
    page = (tmp_path / "x.html").read_text()
    assert "data:image" in page


def test_a_folder_that_cannot_be_read_hides_no_other(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.parent / "arms").mkdir()
    list_folder = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "arms":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    result = call("report", run.parent, "--out", tmp_path / "x.html")
    assert "arms (Permission denied)" in result.output
    assert result.exit_code == 0


def test_a_link_to_itself_hides_no_other_run(run: Path) -> None:
    other = run.parent / "loop"
    other.mkdir()
    (other / "model.safetensors").symlink_to(other / "model.safetensors")
    assert "odd" in call("--checkpoints", run.parent, "runs", "list").output
    assert "report:" in call("report", run.parent).output


def test_what_the_system_refuses_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.safetensors"
    signed(file, {"a": torch.zeros(2)}, {})

    def refuse(path: Path, *arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    for read in (files.read_tensors, files.read_header, files.read_text):
        with pytest.raises(UserError, match="Permission denied") as raised:
            read(file)
        assert "damaged" not in str(raised.value)


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EBUSY, errno.EINVAL, errno.EIO, errno.ELOOP])
def test_every_error_of_the_system_has_a_line(number: int) -> None:
    error = explain(OSError(number, os.strerror(number), "/some/file"))
    assert error is not None
    assert os.strerror(number) in str(error)
    assert "/some/file" in str(error)


# Digests


def test_every_byte_of_the_metadata_is_under_the_digest(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    files.write_tensors(file, {"a": torch.arange(3.0)}, {"step": "6", "groups": "[1]"})
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    start = content.index(b"__metadata__") + len('__metadata__":{')
    end = content.index(b"}", start)
    assert b'"step":"6"' in content[start:end]
    for i in range(start, end):
        file.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(UserError, match="damaged"):
            files.read_tensors(file)
    assert end < 8 + length


def test_a_file_of_an_earlier_version_is_read_and_its_tensors_are_checked(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a": torch.arange(3.0)}
    digest = files.tensor_digest(tensors)
    save_file(tensors, tmp_path / "x.safetensors", {"step": "6", "sha256": digest})
    read, metadata = files.read_tensors(tmp_path / "x.safetensors")
    assert torch.equal(read["a"], tensors["a"])
    assert files.recorded_digest(metadata) == digest
    save_file({"a": torch.arange(3.0) + 1}, tmp_path / "x.safetensors", {"step": "6", "sha256": digest})
    with pytest.raises(UserError, match="damaged"):
        files.read_tensors(tmp_path / "x.safetensors")


def test_files_of_a_newer_version_are_not_called_damaged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.safetensors", "state.safetensors"):
        tensors, metadata = files.read_tensors(run / name)
        assert metadata["file_layout"] == "1"
        with monkeypatch.context() as newer:
            newer.setattr(files, "NEWEST_LAYOUT", "2")
            newer.setattr(files, "_metadata_digest", lambda texts: "of another kind")
            signed(run / name, {key: tensor.clone() for key, tensor in tensors.items()}, metadata)
        with pytest.raises(UserError, match="a newer version wrote"):
            files.read_tensors(run / name)
    for command in (["sample", run], ["train", "--resume", run, "--epochs", 3]):
        result = call(*command)
        assert result.exit_code in {1, 2}
        assert "a newer version wrote" in result.output


def test_verify_sees_another_step(run: Path) -> None:
    state = run / "state.safetensors"
    content = state.read_bytes()
    step = files.read_header(state)[1]["step"]
    state.write_bytes(content.replace(f'"step":"{step}"'.encode(), f'"step":"{int(step) - 1}"'.encode()))
    assert state.read_bytes() != content
    result = call("runs", "verify", run)
    assert result.exit_code == 1
    assert "metadata do not match" in result.output


# States and weights whose digests are right


def _without(name: str) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    return lambda tensors, texts: (texts if name in texts else tensors).__delitem__(name)


def _set(name: str, value: str) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    return lambda tensors, texts: texts.__setitem__(name, value)


def _spoil(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
    name = next(name for name in tensors if name.startswith("optimizer.0.exp_avg"))
    tensors[name] = tensors[name] * torch.nan


@pytest.mark.parametrize(
    "change",
    [
        *map(_without, ("step", "groups", "images", "elapsed", "data_digest", "optimizer.0.exp_avg")),
        *(_set("step", text) for text in ("-5", "1" + 30 * "0", "x", "1.5")),
        *(_set("groups", text) for text in (DEEP, "[]", "[{}]", "null", '[{"lr": "x", "params": [0]}]')),
        *(_set("elapsed", text) for text in ("nan", "-1", "1e999")),
        *(_set("images", text) for text in ("-1", "9" * 5000)),
        _spoil,
    ],
)
def test_a_state_that_cannot_be_is_refused_in_a_line(
    change: Callable[[dict[str, torch.Tensor], dict[str, str]], None], run: Path
) -> None:
    tensors, texts = files.read_tensors(run / "state.safetensors")
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors, texts)
    signed(run / "state.safetensors", tensors, texts)
    result = call("train", "--resume", run, "--epochs", 3)
    assert result.exit_code in {1, 2}, result.output
    assert is_polite(result.output)
    last = result.output.splitlines()[-1]
    assert "state.safetensors is no state of this run" in last or "is not what" in last  # of other data


@pytest.mark.parametrize("line", ["[]", "null", "3", '{"epoch": 1}', '{"epoch": "x", "step": 1}', "{"])
def test_a_line_that_is_no_record_is_named_on_resuming(line: str, run: Path) -> None:
    history = (run / "history.jsonl").read_text()
    (run / "history.jsonl").write_text(f"{history}{line}\n")
    result = call("train", "--resume", run, "--epochs", 3)
    assert result.exit_code == 2
    assert "history.jsonl, line 3, " in result.output


def test_an_empty_picture_does_not_keep_a_run_from_its_end(run: Path) -> None:
    (run / "samples" / "epoch-001.png").write_bytes(b"")
    assert call("train", "--resume", run, "--epochs", 3).exit_code == 0
    assert run_info.inspect(run).finished


@pytest.mark.parametrize("settings", [{"z_dim": 10**7}, {"width": 10**30}, {"width": 4096}])
def test_a_network_is_sized_after_its_weights_are_looked_at(
    settings: dict[str, int], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, metadata = files.read_tensors(run / "model.safetensors")
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | settings)
    signed(run / "model.safetensors", tensors, metadata)
    built = []
    allocate: Any = torch.nn.init.kaiming_uniform_

    def record(tensor: torch.Tensor, *arguments: object, **options: object) -> Any:
        built.append(tensor.device.type)
        return allocate(tensor, *arguments, **options)

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", record)
    with pytest.raises(UserError, match=r"does not fit|no possible network|width must be"):
        checkpoint.load(run)
    assert set(built) <= {"meta"}


@pytest.mark.parametrize(
    ("name", "text"),
    [("training", "[]"), ("training", '{"classes": 3}'), ("training", '{"notes": [1]}'), ("metrics", "[]"),
     ("epoch", "-1"), ("epoch", "9" * 5000), ("finished", DEEP), ("training", '{"images": "x"}')],
)  # fmt: skip
def test_weights_that_say_what_cannot_be_are_refused(name: str, text: str, run: Path) -> None:
    tensors, metadata = files.read_tensors(run / "model.safetensors")
    signed(run / "model.safetensors", tensors, metadata | {name: text})
    with pytest.raises(UserError, match="does not say what it is"):
        run_info.inspect(run)
    for command in (["report", run], ["sample", run], ["--checkpoints", run.parent, "runs", "list"]):
        assert is_polite(call(*command).output)
