import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from genssl.data.split import Split
from genssl.data.synthetic import render
from genssl.errors import UserError

from ..narrow import given


@pytest.fixture(scope="module")
def train() -> Split:
    return render.make("train", count=2000)


@pytest.fixture(scope="module")
def test() -> Split:
    return render.make("test", count=300)


def test_the_split_says_what_it_is(train: Split) -> None:
    assert train.images.shape == (2000, 3, 32, 32)
    assert train.images.dtype == given(train.masks).dtype == torch.uint8
    assert given(train.masks).shape == (2000, 32, 32)
    assert given(train.labels).shape == (2000,)
    assert given(train.labels).dtype == torch.int64
    assert (train.name, train.part, train.classes) == ("synthetic", "train", tuple("0123456789"))


def test_same_arguments_same_bytes(test: Split) -> None:
    again = render.make("test", count=300)
    assert again.digest == test.digest
    assert torch.equal(again.images, test.images)


def test_an_image_does_not_depend_on_the_count(test: Split) -> None:
    few = render.make("test", count=7)
    assert torch.equal(few.images, test.images[:7])
    assert torch.equal(given(few.labels), given(test.labels)[:7])
    assert torch.equal(given(few.masks), given(test.masks)[:7])
    assert few.digest != test.digest


def test_parts_seeds_and_chunks_share_no_image(train: Split, test: Split) -> None:
    other_seed = render.make("train", seed=1, count=300)
    images = torch.cat([train.images, test.images, other_seed.images]).flatten(1)
    assert len(images.unique(dim=0)) == len(images)


def test_classes_are_balanced(train: Split) -> None:
    """A class's count is binomial(n, 1/10): 5 sigma is passed once in 1.7 million draws, for ten classes."""
    n = len(train)
    counts = torch.bincount(given(train.labels), minlength=10)
    assert len(counts) == 10
    assert (counts - n / 10).abs().max() < 5 * math.sqrt(n * 0.1 * 0.9)


def test_the_mask_names_the_label_in_the_center(train: Split) -> None:
    assert given(train.masks).max() <= 10
    center = given(train.masks)[:, 8:24, 10:22].flatten(1)
    own = (center == 1 + given(train.labels)[:, None]).sum(1)
    assert own.min() > 8
    assert own.sum() / (center > 0).sum() > 0.97


def test_neighbors_are_in_the_mask_often_but_not_always(train: Split) -> None:
    other = (given(train.masks) > 0) & (given(train.masks) != 1 + given(train.labels)[:, None, None])
    assert 0.6 < other.flatten(1).any(1).float().mean() < 0.9
    assert set(given(train.masks)[other].tolist()) == set(range(1, 11))


def test_the_mask_lies_on_the_digits_of_the_picture(train: Split) -> None:
    """Ink and ground differ in brightness, far less so under the mask of another picture."""
    gray = train.images.float().mean(1)
    right, wrong = _contrast(gray, given(train.masks) > 0), _contrast(gray, given(train.masks).roll(1, 0) > 0)
    assert right.median() > 3 * wrong.median()
    assert right.quantile(0.02) > 8


def _contrast(gray: Tensor, mask: Tensor) -> Tensor:
    ink = (gray * mask).sum((1, 2)) / mask.sum((1, 2))
    ground = (gray * ~mask).sum((1, 2)) / (~mask).sum((1, 2))
    return (ink - ground).abs()


def test_digits_are_readable(train: Split, test: Split) -> None:
    """A linear model on edge strengths reads them; with labels shuffled it stays at one in ten."""
    model = LogisticRegression(C=30, max_iter=200)
    model.fit(_edges(train.images), given(train.labels).numpy())
    assert model.score(_edges(test.images), given(test.labels).numpy()) > 0.85
    assert model.score(_edges(test.images), given(test.labels).roll(1).numpy()) < 0.2


def _edges(images: Tensor) -> np.ndarray:
    gray = images.float().mean(1)
    across, down = gray[:, :-1, 1:] - gray[:, :-1, :-1], gray[:, 1:, :-1] - gray[:, :-1, :-1]
    edges = torch.stack([across, down, across + down, across - down], dim=1).abs()
    return F.normalize(F.avg_pool2d(edges, 3, 2, 1).flatten(1)).numpy()


def test_light_digits_and_dark_digits_are_as_frequent(train: Split) -> None:
    gray, mask = train.images.float().mean(1), given(train.masks) > 0
    ink = (gray * mask).sum((1, 2)) / mask.sum((1, 2))
    lighter = (ink > gray.mean((1, 2))).float().mean()
    assert abs(lighter - 0.5) < 5 * 0.5 / math.sqrt(len(train))  # binomial, 5 sigma


@pytest.mark.parametrize("size", [16, 30, 48])
def test_other_sizes_show_the_same_numbers(size: int, test: Split) -> None:
    other = render.make("test", image_size=size, count=20)
    assert other.images.shape == (20, 3, size, size)
    assert torch.equal(given(other.labels), given(test.labels)[:20])
    small = F.interpolate(given(other.masks)[:, None].float(), size=32)[:, 0]  # nearest
    assert (small == given(test.masks)[:20]).float().mean() > 0.85


def numpy_state() -> np.ndarray:
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    words: np.ndarray = state["state"]["key"]
    return words


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), numpy_state().copy()
    render.make("train", count=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (numpy_state() == before[2]).all()


def test_progress_ends_at_the_count() -> None:
    calls: list[tuple[int, int]] = []
    render.make("test", count=260, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(250, 260), (260, 260)]


@pytest.mark.parametrize(("count", "size"), [(0, 32), (-1, 32), (5, 15)])
def test_nothing_to_render_is_refused(count: int, size: int) -> None:
    with pytest.raises(UserError, match="ask for"):
        render.make("train", count=count, image_size=size)
