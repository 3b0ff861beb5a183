"""Pipelines for diffusers: its own schedulers draw our samples from the same noise."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import genssl
from genssl.models.ddpm import DDPM
from genssl.models.flow import Flow, solve_ode
from genssl.models.guidance import GUIDANCE
from genssl.models.method import Method
from genssl.pixels import to_bytes
from genssl.runtime import generator, normal

from ..conftest import call
from ..peers import import_peer
from .exportable import saved

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "ddpm": ("ddpm", {}),
    "v": ("ddpm", {"prediction": "v", "zero_terminal_snr": True}),
    "image": ("ddpm", {"prediction": "x", "beta_schedule": "cosine"}),
    "gray, patches": ("ddpm", {"network": "compact", "channels": 1}),
    "classes": ("ddpm", {"conditional": True, "num_classes": 3}),
    "flow": ("flow", {}),
    "flow, classes": ("flow", {"conditional": True, "num_classes": 3}),
}
STEPS = 25  # every time of the DDPMs here: of fewer steps, ours would choose other times
GUIDED = {name for name in CASES if "classes" in name}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_not_in_the_users_cache(tmp_path, monkeypatch)


def code_not_in_the_users_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers copies the code of a pipeline to a folder of the hub's cache before it runs it."""
    utils = import_peer("diffusers.utils.dynamic_modules_utils")
    monkeypatch.setattr(utils, "HF_MODULES_CACHE", str(folder / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def exported(name: str) -> tuple[Method, Any]:
    """A method and its pipeline, through the command and a folder."""
    kind, changes = CASES[name]
    folder = saved(Path("run"), kind, **changes, **({"timesteps": STEPS} if kind == "ddpm" else {}))
    result = call("export", folder, "--format", "diffusers", "--out", "pipeline", "--json")
    assert result.exit_code == 0, result.output
    names: dict[str, Any] = {}
    load, _ = json.loads(result.stdout)["load"].split("images = ")
    exec(load, names)
    names["pipeline"].set_progress_bar_config(disable=True)
    return genssl.load(folder), names["pipeline"]


def close(ours: Tensor, theirs: Tensor) -> None:
    # Its products of the alphas are in float32, and steps of random weights amplify what they round
    assert float(ours.std()) > 0.1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize("name", CASES)
def test_its_scheduler_draws_our_samples(name: str) -> None:
    method, pipeline = exported(name)
    x = normal((3, method.config.channels, 32, 32), generator(0, "test"))
    labels = torch.tensor([0, 2, 1]) if name in GUIDED else None
    t = torch.tensor([3, 12, 24])
    network: Any = method.network
    with torch.no_grad():
        assert torch.equal(pipeline.unet(x, t, labels), network(x, t, labels))
        if isinstance(method, Flow):
            ours = solve_ode(method._field(labels, 1.5 if name in GUIDED else None), x, STEPS, heun=False)
        else:
            guidance: dict[str, Any] = {"labels": labels, "guidance": 1.5} if name in GUIDED else {}
            assert isinstance(method, DDPM)
            ours = method.denoise(x, None, sampler="ddim", steps=STEPS, **guidance)
    default = inspect.signature(type(pipeline).__call__).parameters.get("guidance_scale")
    assert default is None or default.default == 1 + GUIDANCE
    options: dict[str, Any] = {"class_labels": labels, "guidance_scale": 2.5} if name in GUIDED else {}
    options |= {"num_inference_steps": STEPS, "latents": x, "batch_size": 3}
    close(ours, pipeline(**options, output_type="latent").images)
    if isinstance(method, DDPM):
        with pytest.raises(ValueError, match="must divide 25 for DDIM, not be 10"):
            pipeline(**{**options, "num_inference_steps": 10})
    with pytest.raises(ValueError, match="output_type must be pil, np, pt or latent, not numpy"):
        pipeline(**options, output_type="numpy")
    if labels is not None:
        each = [torch.Generator().manual_seed(i) for i in range(3)]
        pipeline(batch_size=3, num_inference_steps=STEPS, generator=each, output_type="np")
    drawn = pipeline(**options, output_type="np").images
    bytes_of_ours = to_bytes(ours).permute(0, 2, 3, 1)
    difference = (torch.from_numpy(drawn) * 255).round().long() - bytes_of_ours.long()
    assert int(difference.abs().max()) <= 1  # where rounding carries a value over an edge
    assert float((difference != 0).double().mean()) < 0.05


def test_a_folder_holds_all_that_the_pipeline_needs() -> None:
    """Also without diffusers: the code compiles, and the settings are the run's."""
    folder = saved(Path("ddpm-digits"), "ddpm")
    result = call("export", folder, "--format", "diffusers")
    assert result.exit_code == 0, result.output
    made = Path("ddpm-digits-diffusers")
    for name in ("pipeline.py", "unet/unet_model.py"):
        compile((made / name).read_text(), name, "exec")
        assert "genssl" not in "".join(
            line for line in (made / name).read_text().splitlines() if "import" in line.split()[:3]
        )
    betas = json.loads((made / "scheduler" / "scheduler_config.json").read_text())["trained_betas"]
    ours: Any = genssl.load(folder)
    assert betas == ours.schedule.betas.tolist()
    assert call("export", folder, "--format", "diffusers").exit_code == 0  # again, in the same folder
    assert not Path("ddpm-digits-diffusers-2").exists()
    other = call("export", folder, "--format", "diffusers", "--out", made)  # another command line
    assert other.exit_code == 2
    assert "was not made by this command" in other.stderr
    assert "trust_remote_code=True" in (made / "README.md").read_text()
    assert json.loads((made / "genssl.json").read_text())["run"] == "ddpm-digits"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("vae", [], "diffusers has no scheduler for a vae; export it with --format onnx"),
        ("simsiam", [], "diffusers has no scheduler for a simsiam"),
        ("ddpm", ["--part", "network"], "is for whole pipelines; --part network goes with --format onnx"),
        ("ddpm", ["--out", "full"], "full is not empty and was not made by this command"),
        ("ddpm", ["--out", "full/file"], "full/file is a file"),
        ("ddpm", ["--out", "run"], "is not empty"),
    ],
)
def test_wrong_input_is_one_line(kind: str, options: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    folder = saved(Path("run"), kind)
    before = sorted(Path().rglob("*"))
    result = call("export", folder, "--format", "diffusers", *options)
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line
    assert sorted(Path().rglob("*")) == before
