"""`genssl purify` on rendered digits: a conditional DDPM and a flow, surrogates, sentences and faults."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from genssl import checkpoint
from genssl.config import make
from genssl.data.loading import load
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval import purify as evaluation
from genssl.eval.purify import Level, PurifySettings, Share, finding
from genssl.metrics.attacks import Attack
from genssl.models import unet
from genssl.models.build import build
from genssl.models.ddpm import DDPM
from genssl.models.method import Method
from genssl.models.unet import Layout
from genssl.pixels import to_model
from genssl.runtime import generators

from ..conftest import call

SIDE = 16
FEW: list[object] = [
    "-n", 12, "--attack-steps", 3, "--full-steps", 2, "--eot", 2, "--surrogate-steps", 2, "--steps", 3,
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.LAYOUTS, "tiny", Layout((16, 16), (1, 1), (False, False)))
        yield


def train(folder: Path, method: str, data: object, *settings: str) -> Path:
    words = [word for setting in settings for word in ("--set", setting)]
    result = call(
        "train", method, "--data", data, "--out", folder, "--epochs", 1, "--image-size", SIDE,
        "--batch-size", 60, "--sample-every", 0, "--device", "cpu", *words,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("purify")
    ddpm = ("network=tiny", "timesteps=40", "features_t=3", "conditional=true", "scale_betas=true")
    return {
        "ddpm": train(root / "ddpm", "ddpm", digits, *ddpm),
        "flow": train(root / "flow", "flow", digits, "network=tiny"),
        "classifier": train(root / "classifier", "classifier", digits, "encoder=small"),
    }


def purified(runs: dict[str, Path], method: str, out: Path, *options: object) -> dict[str, Any]:
    arguments = ["--classifier", runs["classifier"], *FEW, *options]
    result = call("purify", runs[method], *arguments, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


@pytest.mark.parametrize(("method", "levels"), [("ddpm", [4, 20]), ("flow", [100])])
def test_numbers_and_pictures(method: str, levels: list[int], runs: dict[str, Path], tmp_path: Path) -> None:
    options = [word for level in levels for word in ("--t-prime", level)]
    values = purified(runs, method, tmp_path / "a.png", *options)
    assert [row["t_prime"] for row in values["levels"]] == levels
    assert (values["images"], values["eot_draws"], values["epsilon"]) == (12, 2, pytest.approx(8 / 255))
    assert values["classifier"] == "classifier"
    for row in values["levels"]:
        for kind in ("clean", "transfer", "full", "worst"):
            assert 0 <= row[f"{kind}_low"] <= row[kind] <= row[f"{kind}_high"] <= 1
        assert row["worst"] <= min(row["transfer"], row["full"])
    assert values["finding"].startswith("without defense")
    for name in ("a.png", "a-examples.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500


def test_no_ball_is_no_attack_and_the_same_command_gives_the_same(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--t-prime", 9, "--eps", "0")
    first, second = (purified(runs, "ddpm", tmp_path / f"{i}.png", *options) for i in range(2))
    (row,) = first["levels"]
    assert row["clean"] == row["transfer"] == row["full"] == row["worst"]
    assert first["clean"] == first["attacked"]
    assert first["levels"] == second["levels"]


def test_an_image_fares_alike_in_batches_of_any_size(runs: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        purified(runs, "ddpm", tmp_path / f"{size}.png", "--t-prime", 9, "--batch-size", size)["levels"]
        for size in (12, 5)
    ]
    assert rows[0] == rows[1]


def test_its_files_are_named_by_what_matters_and_the_report_shows_them(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    few = ["-n", 4, "--attack-steps", 0, "--full-steps", 0, "--t-prime", 30, "--device", "cpu", "--yes"]
    result = call("purify", runs["flow"], "--classifier", runs["classifier"], *few)
    assert result.exit_code == 0, result.output
    (file,) = (runs["flow"] / "eval").glob("purify*.json")
    assert re.fullmatch(r"purify-attacksteps0-classifier-classifier-\w{4}-fullsteps0-n4-t30", file.stem)
    assert {path.name for path in file.parent.glob("purify*.png")} == {
        f"{file.stem}.png", f"{file.stem}-examples.png"
    }  # fmt: skip
    assert call("report", runs["flow"], "--out", tmp_path / "report.html").exit_code == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Purification" in page
    assert "without defense" in page


def test_default_levels_are_those_of_their_noise(runs: dict[str, Path], tmp_path: Path) -> None:
    values = purified(runs, "flow", tmp_path / "a.png", "--norm", "l2", "--full-steps", 0)
    # t / (1 - t) reaches r at t = r / (1 + r)
    assert [row["t_prime"] for row in values["levels"]] == [91, 167, 231]
    assert (values["epsilon"], values["step_size"]) == (0.5, 0.125)
    course = build(make("ddpm", {"network": "tiny"}))
    assert isinstance(course, DDPM)
    first: dict[float, int] = {}
    alpha_bar = 1.0
    for t_prime in range(1, 1001):
        alpha_bar *= 1 - (1e-4 + (0.02 - 1e-4) * (t_prime - 1) / 999)
        ratio = math.sqrt((1 - alpha_bar) / alpha_bar)
        first |= {wanted: t_prime for wanted in (0.1, 0.2, 0.3) if ratio >= wanted and wanted not in first}
    assert evaluation.default_levels(course) == tuple(first.values())


def test_the_only_classifier_is_taken(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "none"))
    arguments = ["purify", runs["flow"], *FEW, "--t-prime", 50, "--out", tmp_path / "a.png"]
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "`genssl train classifier --data DATA` trains one" in refused.stderr
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(runs["classifier"].parent))
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "12 images, purified at t' = 50; attacked in an linf ball of 8/255" in result.stderr
    assert "expected: about" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eps", "-0.1"], "--eps must be from 0 to 10,000, not -0.1"),
        (["--eps", "8/0"], "--eps takes a number or a fraction such as 8/255, not '8/0'"),
        (["--step", "1e308"], "--step must be from 0 to 10,000, not 1e308"),
        (["--step", "much"], "--step takes a number"),
        (["--t-prime", 0], "t' must be from 1 to 40, not 0"),
        (["--t-prime", 41], "t' must be from 1 to 40, not 41"),
        (["--classifier", "DDPM"], "needs a classifier, and this is a ddpm"),
        (["--classifier", "nowhere"], "no run 'nowhere'"),
        (["--classifier", "OTHER"], "knows 4 classes (0, 1, 2, ...), and digits has 10 classes"),
    ],
)
def test_bad_input_is_one_line(
    options: list[object], message: str, runs: dict[str, Path], digits: Path, tmp_path: Path
) -> None:
    if options[-1] == "OTHER":
        options = ["--classifier", of_fewer_classes(digits, tmp_path)]
    words = [runs["ddpm"] if word == "DDPM" else word for word in options]
    chosen = [] if "--classifier" in words else ["--classifier", runs["classifier"]]
    result = call("purify", runs["ddpm"], *chosen, *FEW, *words, "--out", tmp_path / "a.png")
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("using ", "reading "))]
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert not (tmp_path / "a.png").exists()


def of_fewer_classes(digits: Path, folder: Path) -> Path:
    for file in digits.rglob("[0-3]/*.png"):
        target = folder / "few" / file.relative_to(digits)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return train(folder / "other", "classifier", folder / "few", "encoder=small")


def test_a_method_that_purifies_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    result = call("purify", runs["classifier"], "--classifier", runs["classifier"], *FEW)
    assert result.exit_code == 2
    assert "purify needs a ddpm or a flow, and this is a classifier" in result.stderr


def test_images_without_labels(runs: dict[str, Path], digits: Path) -> None:
    classifier, ddpm = checkpoint.load(runs["classifier"]), checkpoint.load(runs["ddpm"])
    split = replace(load(str(digits), "test", image_size=SIDE), labels=None)
    settings = PurifySettings(Attack(), 1, 1, 1)
    with pytest.raises(UserError, match="has no labels, and accuracy needs them"):
        evaluation.check(ddpm, classifier, split, settings)


# The purification itself


def images(n: int = 6) -> Tensor:
    pixels = torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8)
    return to_model(pixels)


@pytest.mark.parametrize(("method", "t_prime"), [("ddpm", 10), ("flow", 200)])
def test_no_class_is_told_and_gradients_pass(method: str, t_prime: int, runs: dict[str, Path]) -> None:
    model: Any = checkpoint.load(runs[method])
    asked: list[object] = []
    model.network.register_forward_pre_hook(lambda _, inputs: asked.append((inputs[2:] or (None,))[0]))
    x = images().requires_grad_()
    for surrogate in (False, True):
        y = model.purify(x, t_prime, generators(0, "eval", range(6)), 3, surrogate=surrogate)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().sum()) > 0
    assert asked == [None] * 6  # three calls each, all of no class


class Perfect(torch.nn.Module):
    """The velocity, or the epsilon, of a world with one image: what a trained network would predict."""

    def __init__(self, image: Tensor, signal: Any, std: Any, *, velocity: bool) -> None:
        super().__init__()
        self.image, self.signal, self.std, self.velocity = image, signal, std, velocity
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        signal, std = (f(t).view(-1, 1, 1, 1) for f in (self.signal, self.std))
        epsilon: Tensor = (x - signal * self.image) / std
        return epsilon - self.image if self.velocity else epsilon


@pytest.mark.parametrize("surrogate", [False, True])
def test_of_one_known_image_everything_is_purified_to_it(surrogate: bool) -> None:
    target = images(1)
    ddpm: Any = build(make("ddpm", {"network": "tiny", "image_size": SIDE}))
    schedule = ddpm.schedule
    ddpm.network = Perfect(
        target, schedule.sqrt_alphas_cumprod.__getitem__,
        schedule.sqrt_one_minus_alphas_cumprod.__getitem__, velocity=False,
    )  # fmt: skip
    flow: Any = build(make("flow", {"network": "tiny", "image_size": SIDE}))
    flow.network = Perfect(target, lambda t: 1 - t / 1000, lambda t: t / 1000, velocity=True)
    with torch.no_grad():
        for model, t_prime in ((ddpm, 300), (flow, 400)):
            x = model.purify(images(), t_prime, generators(0, "eval", range(6)), 6, surrogate=surrogate)
            torch.testing.assert_close(x, target.expand_as(x), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("method", "t_prime"), [("ddpm", 10), ("flow", 200)])
def test_the_noise_put_in_is_that_of_the_level(method: str, t_prime: int, runs: dict[str, Path]) -> None:
    model: Any = checkpoint.load(runs[method])
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    black = torch.zeros(64, 3, SIDE, SIDE)
    with torch.no_grad():
        model.purify(black, t_prime, generators(0, "eval", range(64)), 1)
    ratio = float(model.noise_to_signal[t_prime - 1])
    share = 1 / (1 + ratio) if method == "flow" else (1 + ratio**2) ** -0.5
    # The deviation of 49,152 numbers is known to 1 / sqrt(2 n) of itself: five of those
    assert float(seen[0].std()) == pytest.approx(ratio * share, rel=5 / (2 * 49152) ** 0.5)


# The attack knows of the defense


class Blind(Method):
    """A purification that undoes nothing: the identity, so that both attacks are of the classifier alone."""

    config = make("flow", {"image_size": SIDE})
    noise_to_signal = torch.linspace(0.1, 1, 5)

    def purify(self, images: Tensor, *_: object, surrogate: bool = False) -> Tensor:
        return images


class Brightness(Method):
    """Two classes: whether the mean of an image is above 0, by a linear map."""

    config = make("classifier", {"image_size": SIDE, "num_classes": 2})
    class_names = ("dark", "light")
    classes = 2

    def classify(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return 10 * torch.stack([-mean, mean], 1)


def shades() -> Split:
    """Half of the images nearer to the border than the ball is wide, half farther."""
    levels = torch.tensor([128 + step for step in (-40, -12, -4, 4, 12, 40)], dtype=torch.uint8)
    pixels = levels.view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE).clone()
    return Split(pixels, (levels >= 128).long(), ("dark", "light"), "shades", "test", "none")


def test_a_linear_classifier_falls_exactly_within_the_ball() -> None:
    settings = PurifySettings(Attack(steps=10), 10, 1, 1, t_primes=(1, 3))
    result = evaluation.purify(Blind(), Brightness(), shades(), settings, tick=lambda *_: None)
    # 8 of 255 levels: the two at 4 levels from the border fall, those at 12 and 40 stand
    assert result.values["clean"]["accuracy"] == 1
    assert result.values["attacked"]["accuracy"] == pytest.approx(4 / 6)
    for row in result.values["levels"]:
        assert row["clean"] == 1
        assert row["transfer"] == row["full"] == row["worst"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(("steps", "full_steps"), [(10, 0), (0, 10)])
def test_the_worst_is_of_images_right_after_either_attack(steps: int, full_steps: int) -> None:
    settings = PurifySettings(Attack(steps=steps), full_steps, 1, 1, t_primes=(1,))
    result = evaluation.purify(Blind(), Brightness(), shades(), settings, tick=lambda *_: None)
    (row,) = result.values["levels"]
    assert sorted((row["transfer"], row["full"])) == pytest.approx([4 / 6, 1])
    assert (row["transfer"] < 1) is (steps > 0)
    assert row["worst"] == pytest.approx(4 / 6)


def test_the_progress_ends_where_it_was_said_to() -> None:
    ticks: list[tuple[int, int]] = []
    settings = PurifySettings(Attack(steps=2), 3, 2, 4, t_primes=(1, 3), batch_size=4)
    evaluation.purify(Blind(), Brightness(), shades(), settings, tick=lambda *so_far: ticks.append(so_far))
    assert ticks[-1][0] == ticks[-1][1]
    assert all(first[0] < second[0] for first, second in pairwise(ticks))
    assert evaluation.expected_seconds(Blind(), Brightness(), shades(), settings) > 0


# The sentence follows from the intervals


def level(t_prime: int, clean: int, transfer: int, full: int, worst: int) -> Level:
    counts = {"clean": clean, "transfer": transfer, "full": full, "worst": worst}
    return Level(t_prime, 0.1, {kind: Share(count, 100) for kind, count in counts.items()})


@pytest.mark.parametrize(
    ("attacked", "rows", "parts"),
    [
        (2, (90, 80, 30, 30), ("purification helps", "overstates it", "no loss is shown")),
        (2, (50, 40, 35, 5), ("no help is shown", "no difference is shown", "purification costs accuracy")),
        (60, (90, 20, 70, 18), ("purification harms", "too weak to count", "no loss is shown")),
    ],
)
def test_the_sentence_says_what_the_numbers_show(
    attacked: int, rows: tuple[int, ...], parts: tuple[str, ...]
) -> None:
    undefended = {"clean": Share(95, 100), "attacked": Share(attacked, 100)}
    text = finding(undefended, [level(10, 90, 1, 1, 0), level(50, *rows)])
    assert "purified at t' = 50" in text
    for part in parts:
        assert part in text
    assert f"{attacked}.0 % (" in text
