import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from genssl.metrics import linear_probe as module
from genssl.metrics.linear_probe import ProbeFeatures, ProbeResult, ProbeSettings, linear_probe
from genssl.runtime import epoch_permutation, generator

N, M, D, C = 500, 200, 6, 4


def clouds(n: int, counter: int) -> tuple[Tensor, Tensor]:
    draw = generator(0, "test", counter)
    centers = torch.randn(C, D, generator=generator(0, "test", 99))
    labels = torch.randint(C, (n,), generator=draw)
    return centers[labels] + torch.randn(n, D, generator=draw) + 2, labels


TRAIN, LABELS = clouds(N, 0)
TEST, TEST_LABELS = clouds(M, 1)


def fit(train: ProbeFeatures = TRAIN, test: Tensor = TEST, seed: int = 0, **changes: Any) -> ProbeResult:
    settings = ProbeSettings(**{"epochs": 5, "batch_size": 64, **changes})
    return linear_probe(train, LABELS, test, TEST_LABELS, C, settings, seed=seed)


def by_autograd(settings: ProbeSettings) -> tuple[list[float], list[float], Tensor]:
    """Torch's own layer, optimizer and loss, in double precision: train losses, test accuracies, classes."""
    x, y = TRAIN.double(), TEST.double()
    centered = x - x.mean(0)
    scale = 2 * torch.linalg.svdvals(centered)[0] / math.sqrt(N)
    x, y = centered / scale, (y - x.mean(0)) / scale
    x, y = (torch.cat([each, torch.full((len(each), 1), 0.5)], 1) for each in (x, y))
    layer = nn.Linear(D + 1, C, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(
        layer.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )
    steps = math.ceil(N / settings.batch_size) * settings.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, accuracies = [], []
    for epoch in range(settings.epochs):
        for rows in epoch_permutation(3, epoch, N).split(settings.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(x[rows]), LABELS[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            losses.append(float(F.cross_entropy(layer(x), LABELS)))
            accuracies.append(float((layer(y).argmax(1) == TEST_LABELS).double().mean()))
    return losses, accuracies, layer(y).argmax(1)


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_agrees_with_autograd_and_torchs_optimizer(decay: float) -> None:
    settings = ProbeSettings(epochs=6, batch_size=64, learning_rate=10, momentum=0.8, weight_decay=decay)
    found = linear_probe(TRAIN, LABELS, TEST, TEST_LABELS, C, settings, seed=3)
    losses, accuracies, predicted = by_autograd(settings)
    assert found.train_loss == pytest.approx(losses, rel=1e-4)
    assert found.test_accuracy == pytest.approx(accuracies)
    assert torch.equal(found.predicted, predicted)


def test_reaches_the_optimum_that_scikit_learn_finds() -> None:
    found = fit(epochs=100, batch_size=256)
    peer = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(TRAIN.numpy(), LABELS.numpy())
    chances = torch.from_numpy(peer.predict_proba(TRAIN.numpy()))
    optimum = float(F.nll_loss(chances.log(), LABELS))
    assert optimum - 1e-6 < found.train_loss[-1] < optimum * 1.01
    assert found.test_accuracy[-1] == pytest.approx(peer.score(TEST.numpy(), TEST_LABELS.numpy()), abs=0.02)
    assert found.train_accuracy[-1] == pytest.approx(peer.score(TRAIN.numpy(), LABELS.numpy()), abs=0.02)


def test_scale_place_and_rotation_of_features_change_nothing() -> None:
    expected = fit()
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator(1, "test"))).Q
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: 1e-4 * x, lambda x: 1e4 * x, lambda x: x - 7, lambda x: x.matmul(rotation)
    ]  # fmt: skip
    for change in changes:
        found = fit(change(TRAIN), change(TEST))
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
        assert found.test_loss == pytest.approx(expected.test_loss, rel=1e-3)
    assert fit(100 * TRAIN).scale == pytest.approx(100 * expected.scale, rel=1e-5)


def test_the_rate_of_the_protocol_is_stable_where_batches_are_whole() -> None:
    # curvature at most 1/8 by the choice of scale, and 30 < 2 (1 + 0.9) / (1/8)
    found = fit(epochs=300, batch_size=N)
    assert max(found.train_loss[5:]) < 1.5 * math.log(C)
    assert found.train_loss[-1] == pytest.approx(min(found.train_loss), rel=1e-3)


def test_scores_are_those_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fit()
    assert [len(column) for column in (found.train_accuracy, found.test_loss)] == [5, 5]
    assert found.test_accuracy[-1] == pytest.approx(float((found.predicted == TEST_LABELS).double().mean()))
    monkeypatch.setattr(module, "ROWS", 17)
    again = fit()
    assert again.train_loss == pytest.approx(found.train_loss, rel=1e-5)
    assert again.train_accuracy == found.train_accuracy
    assert fit(epochs=3).train_loss[0] != found.train_loss[0]  # another cosine


def test_the_seed_decides_the_order() -> None:
    assert fit().train_loss == fit().train_loss
    assert fit(seed=1).train_loss != fit().train_loss


def test_features_that_are_made_anew_in_each_epoch() -> None:
    asked: list[int] = []

    def source(epoch: int) -> Tensor:
        asked.append(epoch)
        return TRAIN if epoch < 4 else TRAIN.flip(0)

    found, expected = fit(source), fit()
    assert asked == [0, 1, 2, 3, 4]
    assert found.train_loss[:4] == expected.train_loss[:4]
    assert found.train_loss[4] > expected.train_loss[4] + 0.1  # the labels are not flipped


@pytest.mark.parametrize("value", [0.0, 0.1, 1e3])
def test_constant_features_stay_at_chance(value: float) -> None:
    found = linear_probe(
        torch.full((N, D), value), LABELS, torch.full((M, D), value), TEST_LABELS, C, ProbeSettings(20)
    )
    shares = torch.bincount(LABELS) / N
    assert found.scale == 1
    assert found.train_loss[-1] == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-3)


def test_ticks_by_epoch_and_works_while_gradients_are_off() -> None:
    ticks: list[tuple[int, int]] = []
    with torch.inference_mode():
        train, test = TRAIN.clone(), TEST.clone()
    settings = ProbeSettings(epochs=3)
    linear_probe(
        train, LABELS, test, TEST_LABELS, C, settings, tick=lambda done, total: ticks.append((done, total))
    )
    assert ticks == [(1, 3), (2, 3), (3, 3)]
