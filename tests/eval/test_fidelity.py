from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genssl import checkpoint, files, run_info
from genssl.config import DDPMConfig
from genssl.data import cache
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval import feature_cache as kept
from genssl.eval import fidelity as evaluation
from genssl.eval.feature_cache import PIXELS, FeatureSpace, cached_features, space_of
from genssl.eval.fidelity import FidelitySettings, SampleSet, draw_nearest_training, interval, measure
from genssl.eval.result import EvalResult
from genssl.metrics.fidelity import frechet_distance, kernel_distance, prdc
from genssl.metrics.memorization import find_nearest_training, leave_one_out
from genssl.metrics.sharpness import diversity, sharpness
from genssl.models.build import build
from genssl.runtime import generator

from .blobs import SIZE, Projection, reference, silent, split

TRAIN, TEST = split("train", 90), split("test", 80)
QUICK = FidelitySettings(neighbors=3, resamples=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path))


def space(method: Projection | None = None, digest: str = "weights") -> FeatureSpace:
    return FeatureSpace("projection", (method or Projection()).features, digest)


def evaluate(samples: Tensor, real: Split = TEST, train: Split | None = TRAIN, **changes: Any) -> EvalResult:
    options = {"space": space(), "settings": QUICK, **changes}
    return evaluation.fidelity(samples, real, train, options["space"], options["settings"], silent)


def rows_of(outcome: EvalResult) -> dict[str, dict[str, Any]]:
    return {row["measure"]: row for row in outcome.values["measures"]}


def group(split: Split) -> SampleSet:
    return SampleSet(reference(Projection(), split).float(), sharpness(split.images))


def test_numbers_are_those_of_the_measures() -> None:
    samples = split("other", 40).images
    outcome = evaluate(samples)
    features = {
        name: reference(Projection(), data).float()
        for name, data in {
            "samples": replace(TEST, images=samples), "real": TEST, "train": TRAIN
        }.items()
    }  # fmt: skip
    order = torch.randperm(90, generator=generator(0, "eval"))[:40]
    for column, fake, images, authentic in (
        (
            "samples",
            features["samples"],
            samples,
            find_nearest_training(features["train"], features["samples"]),
        ),
        ("other", features["real"][40:], TEST.images[40:], None),
        ("train", features["train"][order], TRAIN.images[order], leave_one_out(features["train"], order)),
    ):
        real = features["real"][:40]
        expected = {
            "frechet_distance": frechet_distance(real, fake),
            "kernel_distance": kernel_distance(real, fake, 100, 20)[0],
            **prdc(real, fake, 3)._asdict(),
            "authenticity": authentic and float(authentic.authentic.double().mean()),
            "sharpness": float(sharpness(images).mean()),
            "diversity": diversity(fake),
        }
        found = {name: row[column] for name, row in rows_of(outcome).items()}
        infinite = found.pop("frechet_distance_infinity")
        assert infinite < found["frechet_distance"]
        assert (found["authenticity"], expected["authenticity"]) == (None, None) or column != "other"
        found = {name: value for name, value in found.items() if value is not None}
        expected = {name: value for name, value in expected.items() if value is not None}
        assert found == pytest.approx(expected, rel=1e-4)
    assert {"frechet_distance_infinity", *expected} == set(rows_of(outcome))
    about: dict[str, Any] = {
        "samples": 40,
        "real_images": 40,
        "other_images": 40,
        "train_images": 90,
        "dimensions": 8,
    }
    about |= {"kernel_subset_size": 20, "features": "projection", "features_digest": "weights"}
    assert {name: outcome.values[name] for name in about} == about
    # 40 images in 8 dimensions
    assert any("warning: 40 samples for 8 feature dimensions; below 10" in note for note in outcome.notes)
    assert not any("too few" in note for note in outcome.notes)


def test_eighty_images_in_eight_dimensions_are_enough() -> None:
    outcome = evaluate(split("other", 80).images, real=split("test", 160))
    assert not any("warning" in note for note in outcome.notes)


def test_the_extrapolated_distance_has_no_bias() -> None:
    # N(0, I) and N(m, I) in 16 dimensions with |m|^2 = 1. Over 60 simulated draws of 128 images the distance
    # was 2.34 and deviated by 0.29. The extrapolated one deviates by twice that at most, its mean over 10
    # draws by 0.18: the bound is three of these
    mean = torch.full((16,), 0.25)
    plain, infinite = [], []
    for i in range(10):
        draw = generator(i, "test")
        one, two = (torch.randn(128, 16, generator=draw) for _ in range(2))
        left, right = (SampleSet(features, torch.ones(128)) for features in (one, two + mean))
        found, _ = measure(left, right, FidelitySettings(neighbors=1, resamples=20), silent)
        plain.append(found["frechet_distance"].value)
        infinite.append(found["frechet_distance_infinity"].value)
    bias = sum(plain) / 10 - 1
    assert bias > 1
    assert abs(sum(infinite) / 10 - 1) < 0.54


def test_copies_are_found_out() -> None:
    copied = rows_of(evaluate(TRAIN.images[:40]))
    assert copied["authenticity"]["samples"] == 0
    assert copied["authenticity"]["train"] > 0.3
    same = rows_of(evaluate(TEST.images[:40]))
    assert same["frechet_distance"]["samples"] < 1e-3 * same["frechet_distance"]["other"]
    assert (same["precision"]["samples"], same["recall"]["samples"], same["coverage"]["samples"]) == (1, 1, 1)


def test_noise_is_told_from_images() -> None:
    noise = torch.randint(256, (40, 3, SIZE, SIZE), generator=generator(0, "test"), dtype=torch.uint8)
    rows = rows_of(evaluate(noise, space=PIXELS))
    assert rows["frechet_distance"]["samples"] > rows["frechet_distance"]["other"]
    assert rows["sharpness"]["samples"] > 1.5 * rows["sharpness"]["other"]
    assert rows["frechet_distance"]["low"] > rows["frechet_distance"]["other_high"]


def test_intervals_hold_their_number_and_depend_on_the_seed_alone() -> None:
    samples = split("other", 40).images
    first, again, other = (
        rows_of(evaluate(samples, settings=replace(QUICK, resamples=12, seed=seed, batch_size=batch)))
        for seed, batch in ((0, 256), (0, 256), (1, 256))
    )
    assert first == again
    assert first["frechet_distance"]["low"] != other["frechet_distance"]["low"]
    assert first["frechet_distance"]["samples"] == other["frechet_distance"]["samples"]
    for name, row in first.items():
        if name == "frechet_distance_infinity":
            assert row["low"] is None
            continue
        assert row["low"] <= row["samples"] <= row["high"], name
        assert row["train_low"] <= row["train"] <= row["train_high"], name
        assert name in {"precision", "recall", "coverage", "authenticity"} or row["low"] < row["high"]
    none = rows_of(evaluate(samples, settings=replace(QUICK, resamples=0)))
    assert {row[end] for row in none.values() for end in ("low", "high", "other_low", "train_high")} == {None}


def test_an_interval_is_as_wide_as_new_images_would_make_it() -> None:
    # Of a mean the deviation over halves is that of the mean, sigma / sqrt(N); and the interval of a normal
    # number is 2 x 1.96 deviations wide. 400 halves give that to 5 %; the bound is four times as wide
    values = 10 + torch.randn(400, generator=generator(0, "test"))
    whole = SampleSet(torch.randn(400, 2, generator=generator(1, "test")), values)
    found, _ = measure(whole, whole, FidelitySettings(neighbors=1, resamples=400), silent)
    number = found["sharpness"]
    assert number.low is not None
    assert number.high is not None
    expected = 2 * 1.96 * float(values.std()) / 20
    assert number.high - number.low == pytest.approx(expected, rel=0.2)
    assert (number.low + number.high) / 2 == pytest.approx(number.value, abs=0.1 * expected)


def test_an_interval_is_moved_to_its_number() -> None:
    low, high = interval(10.0, torch.arange(101, dtype=torch.float64))
    assert (low, high) == pytest.approx((10 - 47.5, 10 + 47.5))


def test_half_of_a_group_holds_no_image_twice() -> None:
    whole = SampleSet(torch.arange(9.0)[:, None], torch.arange(9.0), torch.arange(9) % 2 == 0)
    part = whole.half(generator(0, "test"))
    assert len(part) == 4
    assert len(part.sharpness.unique()) == 4
    assert torch.equal(part.features[:, 0], part.sharpness)
    assert part.authentic is not None
    assert part.authentic.tolist() == [value % 2 == 0 for value in part.sharpness.tolist()]


def test_warnings_of_too_few() -> None:
    notes = evaluate(split("other", 60).images, space=PIXELS).notes
    assert any("warning: 60 samples for 768 feature dimensions" in note for note in notes)
    assert any(
        "too few real images: 2 x 40 give the row of other images, not 2 x 60" in note for note in notes
    )


def test_few_training_images_are_named() -> None:
    few = replace(TRAIN, images=TRAIN.images[:20], labels=None)
    found = evaluate(split("other", 40).images, train=few)
    assert found.values["train_row_images"] == 20
    assert any("20 give the row of training images, not 40" in note for note in found.notes)
    assert not any("few training images" in note for note in evaluate(split("other", 40).images).notes)


def test_two_training_images_have_no_authenticity() -> None:
    found = evaluate(split("other", 40).images, train=replace(TRAIN, images=TRAIN.images[:2], labels=None))
    assert "authenticity" not in rows_of(found)


def test_what_cannot_be_negative_has_no_negative_interval() -> None:
    halves = [{"density": 0.0, "kernel_distance": 0.0}, {"density": 1.0, "kernel_distance": 1.0}]
    density, kernel = (evaluation._with_interval(name, 0.1, halves) for name in halves[0])
    assert density.low == 0.0
    assert kernel.low is not None
    assert kernel.low < 0


def test_features_of_equal_weights_and_other_settings_are_other_features(tmp_path: Path) -> None:
    spaces = []
    for time in (1, 9):
        ddpm = build(DDPMConfig(network="tiny", timesteps=10, features_t=time)).eval()
        checkpoint.save(ddpm, tmp_path / str(time), epoch=1, finished=True, metrics={})
        spaces.append(space_of(run_info.inspect(tmp_path / str(time)), ddpm))
    assert len({run_info.inspect(tmp_path / str(time)).digest for time in (1, 9)}) == 1
    first, second = (cached_features(one, TEST.take(4, 0), 4, silent) for one in spaces)
    assert not torch.equal(first, second)


def test_training_images_are_not_compared_with_themselves() -> None:
    outcome = evaluate(split("other", 40).images, real=TRAIN)
    row = rows_of(outcome)["authenticity"]
    assert "train" not in row
    assert row["other"] is None
    assert row["samples"] > 0


def test_training_images_stand_beside_samples_without_memorization() -> None:
    outcome = evaluate(split("other", 40).images, settings=replace(QUICK, memorization=False))
    both = evaluate(split("other", 40).images)
    assert "authenticity" not in rows_of(outcome)
    assert outcome.figures == {}
    for name, row in rows_of(outcome).items():
        assert row["train"] == pytest.approx(rows_of(both)[name]["train"], rel=1e-5)


def test_without_training_images() -> None:
    outcome = evaluate(split("other", 40).images, train=None)
    assert "authenticity" not in rows_of(outcome)
    assert outcome.figures == {}
    assert outcome.values["train_images"] is None


# Real images' features are kept


def test_real_features_are_made_once() -> None:
    method = Projection()
    own = space(method)
    first = cached_features(own, TEST, 32, silent)
    assert method.batches == [32, 32, 16]
    assert torch.equal(cached_features(own, TEST, 32, silent), first)
    assert len(method.batches) == 3
    cached_features(space(method, "other weights"), TEST, 32, silent)
    cached_features(own, TEST.take(40), 32, silent)
    assert len(method.batches) == 8


def test_a_damaged_file_is_made_anew() -> None:
    own = space()
    expected = cached_features(own, TEST, 32, silent)
    (file,) = cache.cache_folder().glob("features-*")
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    assert torch.equal(cached_features(own, TEST, 32, silent), expected)
    files.write_tensors(file, {"features": expected[1:]}, {})
    assert torch.equal(cached_features(own, TEST, 32, silent), expected)
    assert torch.equal(files.read_tensors(file)[0]["features"], expected)


def test_pixels_are_not_kept_and_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_features(PIXELS, TEST, 32, silent)
    assert list(cache.cache_folder().glob("features-*")) == []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_tensors", full)
    with pytest.warns(UserWarning, match="cannot keep features in .*No space left"):
        assert len(cached_features(space(), TEST, 32, silent)) == 80


def test_features_that_are_not_finite() -> None:
    with pytest.raises(UserError, match="features of generated images are not finite"):
        evaluate(split("other", 40).images, space=space(Projection(factor=float("inf"))))


# The picture and what is refused


def test_the_picture_begins_with_the_closest_copies() -> None:
    train = torch.full((4, 3, SIZE, SIZE), 0, dtype=torch.uint8)
    train += torch.tensor([0, 60, 120, 180], dtype=torch.uint8).view(4, 1, 1, 1)
    samples = torch.stack([train[2] + 25, train[1]])  # the second is a copy
    features = (each.flatten(1).float() for each in (train, samples))
    picture = draw_nearest_training(samples, train, find_nearest_training(*features))
    assert picture.getpixel((40, 80)) == (60, 60, 60)  # the copy, and its original beside it
    assert picture.getpixel((126, 80)) == (60, 60, 60)
    assert picture.getpixel((10, 60)) == (200, 16, 46)  # framed red
    second = picture.width // 2 + 20
    assert picture.getpixel((second + 32, 80)) == (145, 145, 145)  # the first sample
    assert picture.getpixel((second + 118, 80)) == (120, 120, 120)


@pytest.mark.parametrize(
    ("samples", "real", "settings", "message"),
    [
        (split("other", 7).images, TEST, QUICK, "3 neighbors need 8 samples or more, and there are 7"),
        (split("other", 20).images, TEST.take(15), QUICK, "3 neighbors need 16 real images or more"),
        (split("other", 20).images, TEST, replace(QUICK, neighbors=0), "-k must be at least 1, not 0"),
        (
            torch.zeros(20, 3, 8, 8, dtype=torch.uint8),
            TEST,
            QUICK,
            "the samples are 8x8 pixels, blobs is 16x16",
        ),
    ],
)
def test_wrong_input_is_one_line(
    samples: Tensor, real: Split, settings: FidelitySettings, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(samples, real, settings=settings)
    assert evaluate(split("other", 8).images, TEST.take(16)).values["samples"] == 8
