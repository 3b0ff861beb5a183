"""With the exact denoiser of a finite set of images, what comes back from each noise level is known."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genssl import figures, files
from genssl.commands.generate import parse_levels
from genssl.config import DDPMConfig, VAEConfig
from genssl.data.split import Split
from genssl.data.synthetic import render
from genssl.errors import UserError
from genssl.eval.feature_cache import FeatureSpace, pixels
from genssl.eval.fidelity_features import default_features
from genssl.eval.noise_sweep import higher_levels, make_retrieval, network_calls, sweep
from genssl.eval.reconstruct import Reverse, Snapshots, reconstruct_from
from genssl.models.build import build
from genssl.models.ddpm import DDPM
from genssl.models.diffusion import NoiseSchedule, linear_schedule
from genssl.pixels import to_model
from genssl.runtime import generator, generators

from ..narrow import given

SIZE, T, N = 8, 50, 40
SILENT: Any = {"tick": lambda done, total: None}


class ExactDenoiser(nn.Module):
    """E[epsilon | x_t] when x_0 is one of the images (N, 3, H, W), each as likely as another."""

    def __init__(self, images: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.images, self.schedule = nn.Parameter(images), schedule
        self.seen: list[int] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append(int(t[0]))
        kept = self.schedule.alphas_cumprod[t][:, None]
        candidates = self.images.flatten(1)
        off = torch.cdist(x.flatten(1), kept[:1].sqrt() * candidates).square()
        x_start = (-off / (2 * (1 - kept))).softmax(1) @ candidates
        return ((x.flatten(1) - kept.sqrt() * x_start) / (1 - kept).sqrt()).view_as(x)


def make_split(n: int = N, part: str = "test", size: int = SIZE) -> Split:
    """Faint textures, which are lost in noise before its end, in 4 classes."""
    noise = torch.randn(n, 3, size, size, generator=generator(0, part))
    images = (128 + 20 * noise).clamp(0, 255).to(torch.uint8)
    return Split(images, torch.arange(n) % 4, ("a", "b", "c", "d"), "textures", part, "0")


@pytest.fixture
def split() -> Split:
    return make_split()


@pytest.fixture
def ddpm(split: Split) -> DDPM:
    schedule = linear_schedule(T, scaled=True)
    network: Any = ExactDenoiser(to_model(split.images), schedule)
    method = DDPM(schedule, network, SIZE)
    method.config = DDPMConfig(data="textures", image_size=SIZE, timesteps=T, features_t=0)
    return method.eval()


def test_identity_is_kept_in_little_noise_and_lost_in_much(ddpm: DDPM, split: Split) -> None:
    levels = [1, 5, 10, 15, 20, 25, 30, 40, 50]
    values = sweep(ddpm, split, levels, queries=N, seed=0, batch_size=16, **SILENT).values
    shares = [row["identity_pixels"] for row in values["levels"]]
    assert shares[:2] == [1, 1]
    assert shares[-1] <= 5 / N  # 1 / N by chance
    half = values["t_star_pixels"]
    assert 5 < half["low"] <= half["level"] <= half["high"] < 50
    assert half["not_reached"] == 0
    below, above = max(i for i in levels if i < half["level"]), min(i for i in levels if i >= half["level"])
    assert shares[levels.index(below)] > 0.5 >= shares[levels.index(above)]
    snr = ddpm.schedule.snr
    assert snr[above - 1] <= half["snr"] <= snr[below - 1]


def test_higher_levels_are_added_until_every_t_star_is_reached(ddpm: DDPM, split: Split) -> None:
    chosen: Any = {"queries": N, "seed": 0, "batch_size": 64, "bank_split": make_split(), **SILENT}
    outcome = sweep(ddpm, split, [2, 5], until=T, **chosen)
    levels = [row["t_prime"] for row in outcome.values["levels"]]
    added = higher_levels(5, T)
    assert levels == [2, 5, *added[: len(levels) - 2]]
    for name in ("t_star_pixels", "t_star_class"):
        assert 5 < outcome.values[name]["low"] <= outcome.values[name]["high"] <= levels[-1]
    # The last one was needed
    before = sweep(ddpm, split, levels[:-1], **chosen).values
    assert any(before[name]["high"] is None for name in ("t_star_pixels", "t_star_class"))
    at_once = sweep(ddpm, split, levels, **chosen).values
    assert outcome.values | {"seconds": 0} == at_once | {"seconds": 0}
    assert len(added) > len(levels) - 2, "the highest were not needed"


def test_a_t_star_that_is_not_reached_by_the_last_level_is_said_not_to_be(ddpm: DDPM, split: Split) -> None:
    outcome = sweep(ddpm, split, [1, 3], until=5, queries=8, seed=0, batch_size=8, **SILENT)
    assert [row["t_prime"] for row in outcome.values["levels"]] == [1, 3, 4, 5]
    assert outcome.values["t_star_pixels"]["level"] is None
    assert any("t* not reached by t' = 5" in note and "--until 50" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("last", "until", "levels"),
    [
        (256, 1000, [311, 378, 459, 558, 678, 823, 1000]), (256, 320, [320]), (256, 256, []), (256, 0, []),
        (1, 4, [2, 3, 4]), (999, 1000, [1000]),
    ],
)  # fmt: skip
def test_higher_levels_rise_in_equal_ratios(last: int, until: int, levels: list[int]) -> None:
    assert higher_levels(last, until) == levels


def test_identical_images_are_matched_in_every_space() -> None:
    """In pixels and in the default features, a result that is its original is nearest to it."""
    rendered = render.make("test", count=24)
    retrieval = make_retrieval(rendered, default_features(torch.device("cpu")), rendered, 8, SILENT["tick"])
    x, index = to_model(rendered.images[5:9]), torch.arange(5, 9)
    with torch.inference_mode():
        measured = retrieval(x, x, x, index)
        others = retrieval(x, x, x.roll(1, 0), index)
    for name in ("pixels", "features"):
        assert measured[name].all(), name
        assert not others[name].any(), name


def test_images_without_labels_have_no_class(ddpm: DDPM, split: Split) -> None:
    unlabeled = replace(split, labels=None)
    for images, bank in ((unlabeled, make_split()), (split, unlabeled), (split, None)):
        outcome = sweep(ddpm, images, [2, 5], queries=8, seed=0, batch_size=8, bank_split=bank, **SILENT)
        assert not any("class" in name for name in [*outcome.values, *outcome.values["levels"][0]])
        assert not any("class" in note for note in outcome.notes)


def test_levels_that_lose_nothing_reach_no_t_star(ddpm: DDPM, split: Split) -> None:
    outcome = sweep(ddpm, split, [1, 3], queries=8, seed=0, batch_size=8, **SILENT)
    assert outcome.values["t_star_pixels"] == {
        "level": None, "low": None, "high": None, "not_reached": 1.0, "snr": None,
    }  # fmt: skip
    assert any("t* not reached by t' = 3" in note for note in outcome.notes)


class Answer(nn.Module):
    """A network that has learnt nothing: zeros, or noise of its own, for the noise."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.scale * torch.randn(x.shape, generator=generator(1, "eval", int(t[0])))


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("sampler", ["dpm++", "ancestral"])
def test_a_network_that_does_not_denoise_is_said_not_to(
    ddpm: DDPM, split: Split, scale: float, sampler: Any
) -> None:
    network: Any = Answer(scale)
    ddpm.network = network
    outcome = sweep(ddpm, split, [1, 3, 5], queries=8, seed=0, batch_size=8, sampler=sampler, **SILENT)
    (note,) = [text for text in outcome.notes if "hardly nearer" in text]
    row = next(row for row in outcome.values["levels"] if f"at t' = {row['t_prime']}:" in note)
    assert f"RMSE {row['mse'] ** 0.5:.3g} against" in note
    assert not any("add higher levels" in text for text in outcome.notes)


def test_a_network_that_denoises_is_not_said_to_fail(ddpm: DDPM, split: Split) -> None:
    for levels in ([1, 3], [40, 50]):
        outcome = sweep(ddpm, split, levels, queries=8, seed=0, batch_size=8, **SILENT)
        assert not any("hardly nearer" in note for note in outcome.notes), levels


def test_t_prime_counts_noising_steps_from_one(ddpm: DDPM, split: Split) -> None:
    x = to_model(split.images[:2])
    noised, _ = Reverse(ddpm, "ancestral")(x, 1, generators(0, "eval", range(2)))
    kept = ddpm.schedule.alphas_cumprod[0]
    noise = torch.stack([torch.randn(3, SIZE, SIZE, generator=generator(0, "eval", i)) for i in range(2)])
    torch.testing.assert_close(noised, kept.sqrt() * x + (1 - kept).sqrt() * noise)
    seen: Any = ddpm.network
    assert seen.seen == [0]
    Reverse(ddpm, "ancestral")(x, 7, generators(0, "eval", range(2)))
    assert seen.seen[1:] == [6, 5, 4, 3, 2, 1, 0]


def test_a_query_has_the_same_noise_at_every_level(ddpm: DDPM, split: Split) -> None:
    x = to_model(split.images[3:5])
    drawn = []
    for level in (4, 30):
        noised, _ = Reverse(ddpm, "dpm++")(x, level, generators(5, "eval", [3, 4]))
        kept = ddpm.schedule.alphas_cumprod[level - 1]
        drawn.append((noised - kept.sqrt() * x) / (1 - kept).sqrt())
    torch.testing.assert_close(*drawn, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ancestral", "dpm++", "ddim"])
def test_reconstruction_from_a_level(ddpm: DDPM, split: Split, sampler: Any) -> None:
    told: list[tuple[int, int]] = []
    outcome = reconstruct_from(
        ddpm, split, 5, 6, seed=1, batch_size=4, sampler=sampler, snapshots=3,
        tick=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    values = outcome.values
    assert values["snr"] == pytest.approx(float(ddpm.schedule.snr[4]))
    assert values["network_calls"] == 30
    assert told[-1] == (30, 30)
    assert values["mse"] < 1e-6  # the posterior knows which image it was
    assert values["noised_psnr_db"] < 25
    assert values["psnr_db"] > 60
    picture: Any = outcome.figures["reconstructions"]
    scale = 16  # of 8 pixels, to reach 128; original, t' = 5, 3 snapshots, result
    side = scale * (6 * (SIZE + 2) + 2)
    top = int(picture.info["grid_top"]) + figures.TITLE_HEIGHT
    assert picture.size == (side, top + side)
    for words in (
        "ddpm on textures: 6 ",
        "test images noised to t' = 5",
        sampler,
        "5 network calls per image",
    ):
        assert words in picture.info["Description"], words


def test_results_do_not_depend_on_the_batch_size(ddpm: DDPM, split: Split) -> None:
    found = [reconstruct_from(ddpm, split, 25, 9, seed=1, batch_size=size, **SILENT) for size in (1, 4, 64)]
    for other in found[1:]:
        assert other.values["mse"] == pytest.approx(found[0].values["mse"], rel=1e-4)
    swept = [sweep(ddpm, split, [10, 30], queries=9, seed=1, batch_size=b, **SILENT).values for b in (2, 64)]
    for one, other in zip(*(values["levels"] for values in swept), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_snapshots_are_evenly_spaced_between_the_ends() -> None:
    def left(steps: int, wanted: int) -> list[int]:
        trajectory = Snapshots(steps, wanted, lambda t, x: None)
        for t in reversed(range(steps)):
            trajectory(t - 1, torch.zeros(1))
        return [noising for noising, _ in trajectory.states]

    assert left(100, 4) == [80, 60, 40, 20]
    assert left(4, 8) == [3, 2, 1]
    assert left(1, 8) == []
    for steps, wanted in itertools.product(range(1, 40), range(6)):
        assert len(left(steps, wanted)) == min(wanted, steps - 1)


def test_a_sweep_with_features_and_classes(ddpm: DDPM, split: Split, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 24))
    outcome = sweep(
        ddpm, split, [2, 50], queries=12, seed=0, batch_size=8, space=FeatureSpace("random", encoder),
        bank_split=make_split(), tick=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    values = outcome.values
    assert values["levels"][0]["identity_features"] == 1
    assert values["levels"][1]["identity_features"] < 0.5
    assert (values["class_space"], values["features"]) == ("features", "random")
    assert values["class_half"] == (values["levels"][0]["class_kept"] + 0.25) / 2
    assert 2 < values["t_star_class"]["level"] <= 50
    assert values["class_chance"] == 0.25
    assert values["class_ceiling"] == values["levels"][0]["class_kept"]  # they came back as they were
    assert values["identity_chance"] == 1 / N
    assert [row["steps"] for row in values["levels"]] == [2, 20]
    assert values["network_calls"] == network_calls([2, 50], 12) == 12 * 22 + 52
    assert told[-1] == (12 * 22 + 52, 12 * 22 + 52)
    figure: Any = outcome.figures["noise levels"]
    files.write_picture(tmp_path / "sweep.png", figure)
    assert len([axis for part in figure.subfigs for axis in part.axes]) == 4


def test_classes_are_the_labels_of_like_images(split: Split) -> None:
    """With an encoder that reads the label from the mean brightness, they are found."""
    shade = torch.tensor([40, 100, 160, 220], dtype=torch.uint8)[torch.arange(N) % 4]
    bright = replace(split, images=shade[:, None, None, None].expand(N, 3, SIZE, SIZE))

    def angle(images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1)
        return torch.stack([mean.cos(), mean.sin()], 1)

    judge = make_retrieval(bright, FeatureSpace("brightness", angle), bright, 16, SILENT["tick"])
    predicted = judge.predict(judge.candidates["features"])
    assert judge.bank is not None
    assert len(predicted) == N  # k is the whole bank: the nearest weigh most
    assert torch.equal(predicted, given(bright.labels))


def test_half_precision_holds_pixels_exactly(split: Split) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_model(every).half().float(), to_model(every))
    candidates = make_retrieval(split, None, None, 16, SILENT["tick"]).candidates["pixels"]
    assert torch.equal(candidates.float(), pixels(to_model(split.images)))


def test_an_untrained_network_goes_through(split: Split) -> None:
    config = DDPMConfig(data="textures", image_size=16, timesteps=12, features_t=0, network="tiny")
    images = make_split(size=16)
    outcome = sweep(
        build(config).eval(), images, [3, 12], queries=3, seed=0, batch_size=2, sampler="ancestral", **SILENT
    )
    assert outcome.values["network_calls"] == 3 * 15 + 15


@pytest.mark.parametrize(
    ("text", "levels"),
    [("16:64:16", [16, 32, 48, 64]), ("16:63:16", [16, 32, 48]), ("64,16,64", [16, 64]), ("176", [176])],
)
def test_levels_are_read(text: str, levels: list[int]) -> None:
    assert parse_levels(text) == levels


@pytest.mark.parametrize(
    "text",
    ["", "x", "16:64", "0:64:16", "0,16", "64:16:16", "16:64:0", "16:64:-8", "1:2:3:4", "-5", "1:99999999:1"],
)
def test_levels_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="write first:last:step") as caught:
        parse_levels(text)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("t_prime", "n", "options", "message"),
    [
        (0, 2, {}, "t' must be from 1 to the run's 50 timesteps, not 0"),
        (51, 2, {}, "t' must be from 1 to the run's 50 timesteps, not 51"),
        (9, 0, {}, "-n must be at least 1"),
        (9, 2, {"steps": 10}, "steps must be from 1 to 9"),
        (9, 2, {"steps": 10, "sampler": "dpm++"}, "steps must be from 1 to 9"),
        (9, 2, {"steps": 0, "sampler": "ddim"}, "steps must be from 1 to 9"),
        (9, 2, {"sampler": "euler"}, "unknown sampler 'euler'"),
    ],
)
def test_refusals(
    ddpm: DDPM, split: Split, t_prime: int, n: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        reconstruct_from(ddpm, split, t_prime, n, seed=0, batch_size=4, **options, **SILENT)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ([], {}, "increasing levels"),
        ([9, 3], {}, "increasing levels"),
        ([3, 51], {}, "t' must be from 1 to the run's 50 timesteps, not 51"),
        ([0, 3], {}, "t' must be from 1 to the run's 50 timesteps, not 0"),
        ([3], {"queries": 0}, "1 or more queries"),
        ([3], {"steps": 0}, "1 or more queries and steps"),
        ([3], {"sampler": "euler"}, "unknown sampler"),
        ([3], {"until": 51}, "t' must be from 1 to the run's 50 timesteps, not 51"),
        ([3, 9], {"until": 8}, "raise --until"),
        ([3], {"bank_split": make_split(size=16)}, "trained on 8x8 images, the data are 16x16"),
    ],
)
def test_sweeps_that_are_none(
    ddpm: DDPM, split: Split, levels: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep(ddpm, split, levels, seed=0, batch_size=4, **options, **SILENT)


def test_another_method_or_size_is_refused(ddpm: DDPM, split: Split) -> None:
    vae = build(VAEConfig(data="textures", width=8, image_size=16))
    with pytest.raises(UserError, match="needs a ddpm, and this is a vae"):
        reconstruct_from(vae, split, 1, 1, seed=0, batch_size=1, **SILENT)
    with pytest.raises(UserError, match="needs a ddpm, and this is a vae"):
        sweep(vae, split, [1], seed=0, batch_size=1, **SILENT)
    with pytest.raises(UserError, match="trained on 8x8 images, the data are 16x16"):
        reconstruct_from(ddpm, make_split(size=16), 1, 1, seed=0, batch_size=1, **SILENT)
