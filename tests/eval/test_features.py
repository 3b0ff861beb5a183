import json
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from genssl.errors import UserError
from genssl.eval.features import draw_components, features, metadata_of
from genssl.eval.result import EvalResult
from genssl.metrics.collapse import output_std

from ..narrow import given
from .blobs import CLASSES, Projection, reference, silent, split, unlabeled

TEST = split("test", 120)


def figure_of(outcome: EvalResult) -> Figure:
    figure = outcome.figures["principal components"]
    assert isinstance(figure, Figure)
    return figure


def test_features_and_labels_in_the_order_of_the_split() -> None:
    method = Projection()
    outcome, tensors = features(method, TEST, batch_size=50, tick=silent)
    torch.testing.assert_close(tensors["features"].double(), reference(method, TEST), rtol=1e-5, atol=1e-5)
    assert tensors["features"].dtype == torch.float32
    assert torch.equal(tensors["labels"], given(TEST.labels))
    assert (outcome.values["images"], outcome.values["dimensions"]) == (120, 8)
    assert outcome.values["std_l2_normalized"] == pytest.approx(output_std(reference(method, TEST)), rel=1e-5)


def test_the_picture_has_every_image_at_its_components() -> None:
    method = Projection()
    outcome, _ = features(method, TEST, batch_size=50, tick=silent)
    peer = PCA(2, svd_solver="full").fit(reference(method, TEST).numpy())
    points: Any = figure_of(outcome).axes[0].collections[0]
    found = np.asarray(points.get_offsets())
    expected = peer.transform(reference(method, TEST).numpy())
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(expected[:, 0]), atol=1e-4)
    nearest = np.abs(found[:, None] - expected[None]).sum(2).argmin(1)
    colors = points.get_facecolors()
    for place in range(len(CLASSES)):  # one color a class
        assert len(np.unique(colors[given(TEST.labels).numpy()[nearest] == place], axis=0)) == 1
    assert outcome.values["explained_variance"] == pytest.approx(
        peer.explained_variance_ratio_.tolist(), rel=1e-4
    )


def test_without_labels() -> None:
    outcome, tensors = features(Projection(), unlabeled(TEST), batch_size=50, tick=silent)
    assert list(tensors) == ["features"]
    assert figure_of(outcome).axes[0].get_legend() is None


def test_one_dimension_and_many_classes_are_drawn() -> None:
    features(Projection(1), TEST, batch_size=50, tick=silent)
    many = split("test", 60, tuple(f"class {place}" for place in range(25)))
    axis = draw_components(torch.zeros(60, 2), torch.zeros(2), many).axes[0]
    assert axis.get_legend() is None


def test_metadata_are_text() -> None:
    found = metadata_of(TEST)
    assert json.loads(found["classes"]) == list(CLASSES)
    assert (found["data"], found["part"], found["data_digest"]) == ("blobs", "test", "digest")


def test_refuses_other_sizes_and_what_is_not_finite() -> None:
    with pytest.raises(UserError, match="not finite"):
        features(Projection(factor=float("inf")), TEST, batch_size=50, tick=silent)
    method = Projection()
    method.config = method.config.updated({"image_size": 32})
    with pytest.raises(UserError, match="32x32"):
        features(method, TEST, batch_size=50, tick=silent)
