import math

import pytest
import torch
from sklearn.metrics import confusion_matrix as peer
from sklearn.metrics import recall_score

from genssl.metrics.knn import class_accuracy, confusion_matrix, standard_error
from genssl.runtime import generator


def test_agrees_with_scikit_learn() -> None:
    source = generator(0, "test")
    labels, predicted = torch.randint(4, (2, 300), generator=source)
    matrix = confusion_matrix(labels, predicted, 4)
    assert matrix.tolist() == peer(labels, predicted, labels=range(4)).tolist()
    expected = recall_score(labels, predicted, labels=range(4), average=None)
    assert class_accuracy(matrix).tolist() == pytest.approx(expected.tolist())
    order = torch.randperm(300, generator=source)
    assert torch.equal(confusion_matrix(labels[order], predicted[order], 4), matrix)


def test_a_class_without_images_has_no_accuracy() -> None:
    matrix = confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), 4)
    found = class_accuracy(matrix).tolist()
    assert found[::2] == [0.5, 1.0]
    assert math.isnan(found[1])
    assert math.isnan(found[3])


def test_standard_error_is_that_of_a_mean() -> None:
    right = torch.tensor([1.0] * 30 + [0.0] * 70)
    assert standard_error(0.3, 100) == pytest.approx(float(right.std(correction=0)) / 10)
    assert standard_error(1.0, 5) == 0


def test_refuses_other_numbers() -> None:
    with pytest.raises(ValueError, match="predictions for"):
        confusion_matrix(torch.zeros(3).long(), torch.zeros(1).long(), 2)
