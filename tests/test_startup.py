"""What needs no torch is answered without it: lists, the doctor, and every wrong input."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# In one process, one command after the other: the first that imports something heavy is named
RUN = """
import json, sys
from typer.testing import CliRunner
from genssl.cli import app

for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments)
    heavy = {"torch", "torchvision", "scipy", "sklearn", "matplotlib", "numpy"} & set(sys.modules)
    print(json.dumps([result.exit_code, sorted(heavy), result.stdout, result.stderr]))
"""

ANSWERS = [
    ["--help"],
    ["train", "-h"],
    ["runs", "list"],
    ["runs", "list", "--json"],
    ["runs", "show", "RUN"],
    ["data", "list"],
    ["data", "list", "--json"],
    ["doctor"],
    ["doctor", "--json"],
]

WRONG = [
    (["train", "vea"], "did you mean 'vae'"),
    (["train"], "which method?"),
    (["train", "vae", "--set", "widht=3"], "did you mean 'width'"),
    (["train", "vae", "--set", "width"], "key=value"),
    (["train", "vae", "--data", "DIGITS", "--epochs", "0"], "epochs must be greater than 0"),
    (["train", "vae", "--data", "DIGITS", "--image-size", "20"], "multiple of 16"),
    (["train", "vae", "--data", "DIGITS", "--channels", "2"], "channels must be 1 (gray) or 3 (color)"),
    (["train", "vae", "--precision", "half"], "precision must be"),
    (["train", "vae", "--data", "nowhere.zip"], "no such file or folder: nowhere.zip"),
    (["train", "vae", "--data", "svnh"], "did you mean svhn?"),
    (["train", "vae", "--data", "nowhere-remix"], "no known data set and no path"),
    (["train", "vae", "--data", "nowhere", "--gpus", "2"], "no known data set and no path"),
    (["train", "vae", "--data", "DIGITS", "--out", "RUN"], "exists; choose another --out"),
    (["train", "vae", "--data", "DIGITS", "--out", "RUN", "--dry-run"], "exists; choose another --out"),
    (["train", "vae", "--data", "DIGITS", "--device", "gpu"], "unknown device 'gpu'"),
    (["train", "--config", "nothing.json"], "no such config file"),
    (["train", "ddpm", "--config", "RUN"], "is the config of a vae"),
    (["train", "--resume", "nothing"], "no run folder"),
    (["train", "--resume", "RUN", "--epochs", "1"], "has 2 epochs, and --epochs 1 is fewer"),
    (["train", "--resume", "RUN", "--tag", "x"], "keeps its folder"),
    (["sample", "nothing"], "no run 'nothing'"),
    (["sample", "vae", "--checkpoint", "nothing"], "no run 'nothing'"),
    (["sample", "ddpm", "--checkpoint", "RUN"], "holds a vae"),
    (["sample", "vae", "--data", "nothing"], "no finished vae run on nothing"),
    (["sample", "RUN", "--out", "x.txt"], "cannot write a picture"),
    (["sample", "RUN", "--out", "DIGITS"], "is not empty"),
    (["sample", "RUN", "-n", "0"], "'-n'"),
    (["sample", "RUN", "--device", "gpu"], "unknown device"),
    (["reconstruct", "RUN", "--t-prime", "5"], "are for a diffusion model"),
    (["reconstruct", "RUN", "--data", "nowhere"], "no known data set and no path"),
    (["reconstruct", "ddpm"], "needs --t-prime"),
    (["reconstruct", "ddpm", "--sweep", "many"], "cannot read the levels"),
    (["reconstruct", "ddpm", "--sweep", "16", "--features", "nothing"], "no run 'nothing'"),
    (["interpolate", "RUN", "--method", "ddim"], "--method is not for a vae"),
    (["interpolate", "RUN", "--steps", "1"], "'--steps'"),
    (["latent-profile", "RUN", "--out", "picture"], "has no suffix"),
    (["importance-ll", "RUN", "-k", "0"], "'-k'"),
    (["bits-per-dim", "nothing"], "no run 'nothing'"),
    (["inpaint", "nothing"], "no run 'nothing'"),
    (["purify", "nothing"], "no run 'nothing'"),
    (["purify", "RUN"], "purify needs a classifier, and there is none"),
    (["purify", "RUN", "--eps", "-1"], "--eps must be from 0 to 10,000, not -1"),
    (["knn-eval", "nothing"], "no run 'nothing'"),
    (["knn-eval", "RUN", "--out", "x.txt"], "cannot write a picture"),
    (["linear-eval", "RUN", "--lr", "0"], "--lr must be above 0"),
    (["segment", "nothing"], "no run 'nothing'"),
    (["segment", "RUN", "--beside", "nothing"], "no run 'nothing'"),
    (["segment", "RUN", "--blocks", "1,x"], "--blocks takes numbers, with commas between them, not 'x'"),
    (["segment", "RUN", "--blocks", "1.5"], "--blocks takes whole numbers, not 1.5"),
    (["segment", "RUN", "--labeled", "0"], "--labeled"),
    (["probe", "nothing"], "no run 'nothing'"),
    (["probe", "RUN", "--beside", "nothing"], "no run 'nothing'"),
    (
        ["probe", "RUN", "--label-fractions", "0.1,2"],
        "--label-fractions must be above 0 and at most 1, not 2",
    ),
    (["probe", "RUN", "--label-fractions", "0"], "must be above 0 and at most 1, not 0"),
    (["probe", "RUN", "--label-fractions", "nan"], "--label-fractions takes numbers"),
    (["probe", "RUN", "--lr", "0"], "--lr must be above 0"),
    (["features", "RUN", "--out", "x.png"], "is no .safetensors file"),
    (["fidelity", "nothing"], "no run 'nothing'"),
    (["fidelity", "RUN", "--features", "nothing"], "no run 'nothing'"),
    (["fidelity", "DIGITS"], "name the real images with --data"),
    (["export", "RUN", "--format", "onnx", "--out", "x.png"], "is no .onnx file"),
    (["export", "RUN", "--format", "torchvision", "--part", "decoder"], "is for encoders"),
    (["export", "nothing", "--format", "onnx"], "no run 'nothing'"),
    (["ablate", "vea"], "did you mean 'vae'"),
    (["ablate", "vae"], "nothing to change"),
    (["ablate", "vae", "--set", "widht=3"], "did you mean 'width'"),
    (["ablate", "vae", "--timesteps", "10"], "has no timesteps"),
    (["ablate", "vae", "--set", "width=8", "--data", "nowhere"], "no known data set and no path"),
    (["ablate", "vae", "--set", "width=8", "--out", "FILE"], "is a file"),
    (["compare", "RUN"], "compare takes two or more runs"),
    (["compare", "RUN", "nothing"], "no run 'nothing'"),
    (["compare", "RUN", "RUN"], "are the same run"),
    (["report", "nothing"], "no run 'nothing'"),
    (["assignment", "--out", "DIGITS"], "holds something else"),
    (["assignment", "--out", "new", "--data", "nowhere"], "no known data set and no path"),
    (["demo", "--out", "FILE"], "is a file"),
    (["runs", "show", "nothing"], "no run 'nothing'"),
    (["runs", "verify", "nothing"], "no run 'nothing'"),
    (["data", "fetch", "nowhere"], "no known data set and no path"),
    (["data", "preview", "nowhere"], "no known data set and no path"),
    (["data", "preview", "DIGITS", "--views", "simsiam", "--set", "huu=1"], "did you mean 'hue'"),
    (["data", "preview", "DIGITS", "--out", "x.txt"], "cannot write a picture"),
    (["data", "export", "DIGITS", "--out", "DIGITS"], "is not empty"),
]


@pytest.fixture(scope="module")
def answers(vae_run: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Exit code, heavy modules, stdout and stderr of every command line, in the order of the tables."""
    file = tmp_path_factory.mktemp("startup") / "file"
    file.write_text("")
    paths = {"RUN": str(vae_run), "DIGITS": str(digits), "FILE": str(file)}
    lines = [*ANSWERS, *(arguments for arguments, _ in WRONG)]
    text = json.dumps([[paths.get(word, word) for word in words] for words in lines])
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=text, capture_output=True, text=True, check=True, cwd=file.parent
    )
    assert [path.name for path in file.parent.iterdir()] == ["file"]
    return [json.loads(line) for line in done.stdout.splitlines()]


def named(words: list[str]) -> str:
    return " ".join(words)


@pytest.mark.parametrize("index", range(len(ANSWERS)), ids=map(named, ANSWERS))
def test_answers_without_torch(answers: list[Any], index: int) -> None:
    code, heavy, stdout, stderr = answers[index]
    assert (code, heavy) == (0, []), stderr
    assert stdout


@pytest.mark.parametrize("index", range(len(WRONG)), ids=[named(arguments) for arguments, _ in WRONG])
def test_wrong_input_is_told_without_torch(answers: list[Any], index: int) -> None:
    code, heavy, _, stderr = answers[len(ANSWERS) + index]
    assert (code, heavy) == (2, []), stderr
    (line,) = [text for text in stderr.splitlines() if text.startswith("genssl:")]
    assert WRONG[index][1] in line


def test_the_lists_are_those_of_the_runs(answers: list[Any], vae_run: Path) -> None:
    assert vae_run.name in [row["run"] for row in json.loads(answers[3][2])]
    assert [row["name"] for row in json.loads(answers[6][2])][:2] == ["svhn", "svhn-extra"]
