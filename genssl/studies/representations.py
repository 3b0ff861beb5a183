"""How good the features of a self-supervised run are: by nearest neighbours, and by a linear probe."""

from typing import Any

from torch import Tensor

from genssl.errors import UserError
from genssl.eval.probe import linear_probe
from genssl.eval.representation import require_labels
from genssl.metrics.knn import knn_predict
from genssl.runtime import measuring
from genssl.studies.trained import Trained

NEIGHBOURS = 200  # or the whole bank, when it is smaller
BY_EPOCH = "_by_epoch"  # ends the name of a curve whose last value is the number of that name
KNN, LINEAR, LINEAR_TRAIN = "knn_accuracy_full", "linear_test_accuracy", "linear_train_accuracy"
FIRST = (KNN, LINEAR, LINEAR_TRAIN, "output_std", "rankme")  # what a table begins with
REMARKS = {
    "knn_accuracy": "quick: at most 2,000 test and 10,000 train images",
    KNN: "all test images against all it was trained on",
    LINEAR: "last epoch of the probe",
    LINEAR_TRAIN: "last epoch of the probe",
}


def knn(trained: Trained) -> dict[str, Any]:
    """The accuracy of the test split's nearest neighbours among all images that the run was trained on."""
    if not trained.represents:
        return {}
    try:
        labels, truth = _labels(trained)
    except UserError as error:
        return {"no_accuracy": str(error)}
    bank, queries = trained.features
    classes = len(trained.splits[0].classes)
    with measuring():
        predicted = knn_predict(bank, labels, queries, classes, min(NEIGHBOURS, len(bank)))
    return {KNN: float((predicted == truth).double().mean())}


def linear(trained: Trained) -> dict[str, Any]:
    """Train and test accuracy after the last epoch of the linear probe, and over its epochs."""
    if not trained.represents:
        return {}
    try:
        labels, truth = _labels(trained)
    except UserError as error:
        return {"no_accuracy": str(error)}
    features, test_features = trained.features
    classes, seed = len(trained.splits[0].classes), trained.method.config.seed
    tick = trained.tick("fitting the linear probe")
    probe = linear_probe(features, labels, test_features, truth, classes, seed=seed, tick=tick)
    curves = {
        LINEAR_TRAIN: probe.train_accuracy,
        LINEAR: probe.test_accuracy,
        "linear_train_loss": probe.train_loss,
        "linear_test_loss": probe.test_loss,
    }
    last = {name: curves[name][-1] for name in (LINEAR, LINEAR_TRAIN)}
    return last | {f"{name}{BY_EPOCH}": values for name, values in curves.items()}


def _labels(trained: Trained) -> tuple[Tensor, Tensor]:
    return require_labels(trained.method, *trained.splits)
