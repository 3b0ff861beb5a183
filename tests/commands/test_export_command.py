"""`export`, as a user types it; and the code of its page in the docs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import genssl
from genssl import files, run_info
from genssl.pixels import to_model

from ..conftest import call
from ..eval.exportable import pixels, saved
from ..eval.test_export_diffusers import code_not_in_the_users_cache
from ..peers import import_peer
from .test_commands import json_of

PAGE = Path(genssl.__file__).parent.parent / "docs" / "export.md"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind, under the names that the page uses."""
    folder = tmp_path_factory.mktemp("runs")
    saved(folder / "simsiam-cifar10", "simsiam", encoder="resnet18")
    saved(folder / "simsiam-small", "simsiam")
    saved(folder / "vae-svhn", "vae")
    saved(folder / "ddpm-svhn", "ddpm")
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_torchvision(runs: Path) -> None:
    run = runs / "simsiam-small"
    found = json_of("export", run, "--format", "torchvision")
    info = run_info.inspect(run)
    assert found["file"] == "simsiam-small-torchvision.safetensors"
    assert (found["run"], found["epoch"], found["weights_sha256"]) == (run.name, 3, info.digest)
    assert found["outputs"] == {"features": "float32 (N, 128)"}
    names: dict[str, torch.nn.Module] = {}
    exec(str(found["load"]), names)
    x = to_model(pixels(2))
    with torch.no_grad():
        torch.testing.assert_close(names["model"](x), genssl.load(run).features(x), rtol=1e-5, atol=1e-5)
    with safe_open(str(found["file"]), framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["config"]) == info.config.model_dump()
    assert metadata["weights_sha256"] == info.digest
    assert "(u + 0.5) / 128 - 1" in metadata["images"]
    files.read_tensors(Path(str(found["file"])))  # whole, by its own digest


def test_a_person_is_told_how_to_load_it(runs: Path, tmp_path: Path) -> None:
    result = call("export", runs / "simsiam-small", "--format", "torchvision", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "simsiam-small-torchvision.safetensors" in result.stderr
    code = result.stdout.split("load it with:")[1]
    assert "strict=True" in code
    exec("\n".join(line.rstrip() for line in code.splitlines()), {})


def test_an_exported_file_is_no_run(runs: Path) -> None:
    json_of("export", runs / "simsiam-small", "--format", "torchvision", "--out", "e.safetensors")
    result = call("export", "e.safetensors", "--format", "torchvision")
    assert result.exit_code == 2
    assert "is no genssl checkpoint" in result.stderr


@pytest.mark.slow
def test_onnx(runs: Path) -> None:
    runtime = import_peer("onnxruntime")
    import_peer("onnxscript")
    for part, name in (([], "decoder"), (["--part", "encoder"], "encoder")):
        found = json_of("export", runs / "vae-svhn", "--format", "onnx", *part)
        assert (found["file"], found["part"]) == (f"vae-svhn-{name}.onnx", name)
        assert found["largest_difference"] < 1e-5
        metadata = runtime.InferenceSession(str(found["file"])).get_modelmeta().custom_metadata_map
        info = run_info.inspect(runs / "vae-svhn")
        assert metadata["weights_sha256"] == found["weights_sha256"] == info.digest
        assert json.loads(metadata["config"]) == info.config.model_dump()
    assert found["inputs"] == {"images": "uint8 (N, 3, 32, 32)"}
    code = str(found["load"])
    mean, logvar = eval(code, {"onnxruntime": runtime, "images": pixels(4).numpy()})
    assert mean.shape == logvar.shape == (4, 6)


@pytest.mark.slow
def test_what_the_exporter_prints_stays_off_stdout(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_peer("onnxscript")
    export: Any = torch.onnx.export

    def talkative(*arguments: object, **options: object) -> object:
        print("Applied 1 of general pattern rewrite rules.")
        return export(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", talkative)
    json_of("export", runs / "vae-svhn", "--format", "onnx", "--out", "talkative.onnx")


@pytest.mark.slow
def test_the_code_of_the_page_runs(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_not_in_the_users_cache(tmp_path, monkeypatch)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        import_peer(package)
    text = PAGE.read_text(encoding="utf-8")
    for line in re.findall(r"^genssl export (.*)$", text, re.MULTILINE):
        run, *options = line.split("#")[0].split()
        result = call("export", runs / run, *options)
        assert result.exit_code == 0, result.output
    images = pixels(3)
    names: dict[str, Any] = {"images": images.numpy()}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    features, samples = names["features"], names["x"]
    assert len(names["images"]) == 4
    expected = genssl.load(runs / "simsiam-cifar10").features(to_model(images))
    torch.testing.assert_close(torch.as_tensor(features), expected, rtol=1e-4, atol=1e-4)
    assert samples.shape == (16, 3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae-svhn", "--format", "torchvision"], "no network of a vae's kind; export it with --format onnx"),
        (["ddpm-svhn", "--format", "torchvision"], "no network of a ddpm's kind"),
        (["simsiam-small", "--format", "torchvision", "--part", "decoder"], "--part decoder goes with"),
        (["simsiam-small", "--format", "onnx", "--part", "decoder"], "has no decoder to export"),
        (["simsiam-small", "--format", "onnx", "--out", "e.pt"], "is no .onnx file; name one such as e.onnx"),
        (["simsiam-small", "--format", "torchvision", "--out", "e.onnx"], "is no .safetensors file"),
        (["simsiam-small", "--format", "pickle"], "--format"),
        (["simsiam-small"], "--format"),
        (["nobody", "--format", "onnx"], "nobody"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(runs: Path, arguments: list[str], message: str) -> None:
    run, *rest = arguments
    result = call("export", runs / run, *rest)
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line
    assert not list(Path().iterdir())
