"""Intersection over union, against counts by hand and scikit-learn; ensembles, against torch's own layers."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score
from torch import Tensor, nn

from genssl.metrics.segmentation import (
    ClassifierSettings,
    PixelClassifiers,
    fit_pixel_classifiers,
    intersection_over_union,
    mean_iou,
    pixel_confusion,
)
from genssl.pixels import IGNORE
from genssl.runtime import generator, generators

D, C = 6, 3
FAST = ClassifierSettings(members=3, steps=60, batch_size=64, learning_rate=1e-2)


def clouds(n: int, counter: int) -> tuple[Tensor, Tensor]:
    draw = generator(0, "test", counter)
    labels = torch.randint(C, (n,), generator=draw)
    centers = 2 * torch.randn(C, D, generator=generator(0, "test", 99))
    return centers[labels] + torch.randn(n, D, generator=draw), labels


def test_iou_of_two_masks_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1], [0, 2, 1]])
    predicted = torch.tensor([[0, 1, 1], [0, 2, 2]])
    matrix = pixel_confusion(truth, predicted, 4)
    # class 0: both 2, either 3; class 1: 1 of 3; class 2: 1 of 2; class 3 nowhere
    assert intersection_over_union(matrix)[:3].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert bool(intersection_over_union(matrix)[3].isnan())
    assert mean_iou(matrix) == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)


def test_iou_agrees_with_scikit_learn() -> None:
    draw = generator(0, "test", 5)
    truth, predicted = (torch.randint(7, (2, 30, 30), generator=draw) for _ in range(2))
    matrix = pixel_confusion(truth, predicted, 7)
    np.testing.assert_array_equal(matrix, sklearn_confusion(truth.flatten(), predicted.flatten()))
    expected = jaccard_score(truth.flatten(), predicted.flatten(), average=None)
    np.testing.assert_allclose(intersection_over_union(matrix), expected)
    assert mean_iou(matrix) == pytest.approx(float(expected.mean()))


def test_ignored_pixels_count_for_nothing() -> None:
    truth = torch.tensor([0, 1, IGNORE, IGNORE])
    assert pixel_confusion(truth, torch.tensor([0, 1, 0, 1]), 2).tolist() == [[1, 0], [0, 1]]
    pixels, labels = clouds(300, 0)
    wrong = torch.cat([labels, torch.full((100,), IGNORE)])
    noise = 50 * torch.randn(100, D, generator=generator(0, "test", 7))
    model = fit_pixel_classifiers(torch.cat([pixels, noise]), wrong, C, FAST, seed=0)
    without = fit_pixel_classifiers(pixels, labels, C, FAST, seed=0)
    torch.testing.assert_close(model.state_dict(), without.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model(pixels), without(pixels), rtol=0, atol=0)
    with pytest.raises(ValueError, match="every pixel is ignored"):
        fit_pixel_classifiers(noise, wrong[300:], C, FAST, seed=0)


def member(model: PixelClassifiers, i: int) -> nn.Sequential:
    """One classifier of an ensemble, of torch's own layers."""
    layers: list[nn.Module] = []
    for j, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[i].T.detach().clone(), bias[i, 0].detach().clone()
        layers.append(linear)
        if j < len(model.gains):
            norm = nn.BatchNorm1d(weight.shape[2])
            norm.weight.data, norm.bias.data = (
                p[j][i, 0].detach().clone() for p in (model.gains, model.shifts)
            )
            norm.running_mean = getattr(model, f"mean_{j}")[i, 0].clone()
            norm.running_var = getattr(model, f"var_{j}")[i, 0].clone()
            layers += [nn.ReLU(), norm]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("training", [True, False])
def test_an_ensemble_is_its_members_side_by_side(training: bool) -> None:
    model = PixelClassifiers(D, C, generators(0, "test", range(3)))
    x = torch.randn(3, 40, D, generator=generator(0, "test", 3))
    model.train()(x)  # moves the averages of the batch norms
    peers = [member(model, i).train(training) for i in range(3)]
    torch.testing.assert_close(model.train(training)(x), torch.stack([p(x[i]) for i, p in enumerate(peers)]))
    again = torch.stack([p.eval()(x[i]) for i, p in enumerate(peers)])
    torch.testing.assert_close(model.eval()(x), again)


def test_training_is_adam_on_each_member_alone() -> None:
    pixels, labels = clouds(400, 0)
    settings = ClassifierSettings(members=2, steps=5, batch_size=50)
    found = fit_pixel_classifiers(pixels, labels, C, settings, seed=3)
    sources = [generator(3, "pixel classifiers", 0, i) for i in range(2)]
    start = PixelClassifiers(D, C, sources)
    standard = (pixels - pixels.mean(0)) / pixels.std(0, correction=0)
    for i in range(2):
        peer = member(start, i)
        optimizer = torch.optim.Adam(peer.parameters(), 1e-3)
        rows = (torch.rand(5, 50, generator=sources[i]) * 400).long()
        for chosen in rows:
            optimizer.zero_grad()
            nn.functional.cross_entropy(peer(standard[chosen]), labels[chosen]).backward()
            optimizer.step()
        torch.testing.assert_close(found(standard)[i], peer.eval()(standard), rtol=1e-4, atol=1e-4)


def test_scale_and_place_of_a_channel_change_nothing() -> None:
    pixels, labels = clouds(500, 0)
    test, _ = clouds(200, 1)
    factor, shift = torch.tensor([1e-3, 1, 10, 1e3, 2, 5]), torch.arange(6.0)
    plain = fit_pixel_classifiers(pixels, labels, C, FAST, seed=0).vote(test)[0]
    changed = fit_pixel_classifiers(pixels * factor + shift, labels, C, FAST, seed=0)
    assert float((changed.vote(test * factor + shift)[0] == plain).double().mean()) > 0.98


def test_the_vote_is_the_majority_and_finds_the_classes() -> None:
    pixels, labels = clouds(600, 0)
    test, truth = clouds(400, 1)
    model = fit_pixel_classifiers(pixels, labels, C, FAST, seed=0)
    winner, disagreement = model.vote(test)
    choices = model((test - model.center) / model.scale).argmax(2)
    expected = choices.mode(0).values
    settled = torch.tensor([len(column.unique()) < 3 for column in choices.T])
    assert torch.equal(winner[settled], expected[settled])
    against = (choices != winner).double().mean(0)
    torch.testing.assert_close(disagreement.double(), against)
    # The best that any rule can do on these clouds is above 0.9
    assert float((winner == truth).double().mean()) > 0.85


def test_a_constant_channel_and_the_seed() -> None:
    pixels, labels = clouds(200, 0)
    pixels[:, 0] = 7
    model = fit_pixel_classifiers(pixels, labels, C, FAST, seed=0)
    assert torch.isfinite(model(pixels)).all()
    again, other = (fit_pixel_classifiers(pixels, labels, C, FAST, seed=s) for s in (0, 1))
    assert torch.equal(model.weights[0], again.weights[0])
    assert not torch.equal(model.weights[0], other.weights[0])
    assert not torch.equal(model.weights[0][0], model.weights[0][1])
