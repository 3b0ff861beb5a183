"""What is held out of a train split: of each class alike, nothing twice, nothing lost."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genssl.config import VAEConfig
from genssl.data import loading as load_module
from genssl.data import subset as module
from genssl.data.loading import load, load_for_run
from genssl.data.split import Split
from genssl.data.subset import limit_split, train_validation_split
from genssl.errors import UserError

from ..narrow import given

COUNTS = (2, 7, 15, 24, 40)  # of the classes
LABELS = torch.repeat_interleave(torch.arange(5), torch.tensor(COUNTS))
N = len(LABELS)
ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(0))


def rows_as_pixels() -> Tensor:
    """Images that say in their pixels which row they are."""
    return torch.arange(N).to(torch.uint8).view(-1, 1, 1, 1).expand(N, 3, 2, 2).contiguous()


WHOLE = Split(
    rows_as_pixels(), LABELS[ORDER], tuple("abcde"), "set", "train", "digest", rows_as_pixels()[:, 0]
)
HEAP = replace(WHOLE, labels=None, classes=())


def rows(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def counts(split: Split) -> list[int]:
    assert split.labels is not None
    return torch.bincount(split.labels, minlength=5).tolist()


@pytest.fixture(params=["memory", "file"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.setattr(module, "LARGE", 0)
    return str(request.param)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.1, [1, 1, 2, 2, 4]),  # 0.2 and 0.7 are at least 1; 1.5 is rounded to 2, 2.4 to 2
        (0.5, [1, 4, 8, 12, 20]),
        (0.99, [1, 6, 14, 23, 39]),  # at least one of each class is left
        (1e-9, [1, 1, 1, 1, 1]),
    ],
)
def test_each_class_gives_the_share_and_keeps_an_image(share: float, expected: list[int]) -> None:
    train, validation = train_validation_split(WHOLE, share, 0)
    assert counts(validation) == expected
    assert counts(train) == [n - m for n, m in zip(COUNTS, expected, strict=True)]


@pytest.mark.parametrize("whole", [WHOLE, HEAP], ids=["labeled", "unlabeled"])
def test_every_image_is_in_one_part_in_its_order(whole: Split, storage: str, cache: Path) -> None:
    parts = train_validation_split(whole, 0.3, 5)
    assert sorted(rows(parts[0]) + rows(parts[1])) == list(range(N))
    for split, name in zip(parts, ("train", "validation"), strict=True):
        assert rows(split) == sorted(rows(split))
        assert (split.part, split.name, split.classes) == (name, "set", whole.classes)
        assert split.masks is not None
        assert torch.equal(split.masks, split.images[:, 0])
        assert (split.labels is None) == (whole.labels is None)
        if split.labels is not None:
            assert torch.equal(split.labels, LABELS[ORDER][rows(split)])
    entries = sorted(entry.name[-5:] for entry in cache.glob("rows-*-*"))
    assert entries == (["ation", "train"] if storage == "file" else [])


def test_without_labels_it_is_a_share_of_all() -> None:
    assert [len(split) for split in train_validation_split(HEAP, 0.3, 0)] == [62, 26]  # of 88: 26.4
    two = HEAP.select(torch.tensor([3, 4]))
    assert [len(split) for split in train_validation_split(two, 0.1, 0)] == [1, 1]


def test_the_seed_chooses_and_the_digest_says_what_was_chosen() -> None:
    one, again = (train_validation_split(WHOLE, 0.3, 1) for _ in range(2))
    assert [rows(split) for split in one] == [rows(split) for split in again]
    assert [split.digest for split in one] == [split.digest for split in again]
    others = [train_validation_split(WHOLE, 0.3, 2), train_validation_split(WHOLE, 0.31, 1)]
    others.append(train_validation_split(replace(WHOLE, digest="another"), 0.3, 1))
    assert rows(others[0][0]) != rows(one[0])
    digests = [split.digest for pair in [one, *others] for split in pair]
    assert len({*digests, WHOLE.digest}) == 9


@pytest.mark.parametrize("label", [0, 4])
def test_every_image_of_a_class_is_as_likely(label: int) -> None:
    """Of m images 1 in 4 is held out; over 200 seeds each of them about 50 times."""
    few = WHOLE.select((given(WHOLE.labels) == label).nonzero().flatten()[:8])
    held_out = [rows(train_validation_split(few, 0.25, seed)[1]) for seed in range(200)]
    n, expected = len(few), 200 * len(held_out[0]) / len(few)
    times = torch.bincount(torch.tensor(held_out).flatten(), minlength=N)[rows(few)]
    chi_squared = float(((times - expected) ** 2 / expected).sum())
    assert chi_squared < 3 * n


@pytest.mark.parametrize(
    ("split", "name"),
    [(WHOLE.select(torch.tensor([0, 1, 2])), "class . of set"), (HEAP.select(torch.tensor([0])), "set")],
)
def test_a_single_image_cannot_be_in_both_parts(split: Split, name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} has 1 image to train on, and a holdout needs 2; "):
        train_validation_split(split, 0.1, 0)


def config(digits: Path, **changes: object) -> VAEConfig:
    return VAEConfig(data=str(digits), **{"seed": 3, **changes})


def test_a_run_has_the_limited_split_without_what_is_held_out(digits: Path) -> None:
    settled = config(digits, limit=80, holdout=0.2)
    train, validation = (load_for_run(settled, part) for part in ("train", "validation"))
    limited = limit_split(load(str(digits), "train"), 80, 3)
    for split, expected in zip((train, validation), train_validation_split(limited, 0.2, 3), strict=True):
        assert torch.equal(split.images, expected.images)
        assert split.digest == expected.digest
    assert len(train) + len(validation) == 80
    assert load_for_run(settled, "test").digest == load(str(digits), "test").digest


def test_without_a_holdout_the_split_is_as_it_was(digits: Path) -> None:
    assert load_for_run(config(digits), "train").digest == load(str(digits), "train").digest
    limited = load_for_run(config(digits, limit=80), "train")
    assert limited.digest == limit_split(load(str(digits), "train"), 80, 3).digest


def test_no_validation_split_without_a_holdout(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "load", lambda *_, **__: pytest.fail("data were read"))
    with pytest.raises(
        UserError, match=r"no validation split.*; use the test split, or train with --holdout"
    ):
        load_for_run(config(digits), "validation")
