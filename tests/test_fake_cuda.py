"""Every method on a CUDA device without values: devices agree, and the host reads nothing on the way."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from genssl.data import loader
from genssl.data.augment.views import choose_views
from genssl.data.loader import place
from genssl.eval import fidelity as quality
from genssl.eval import linear_eval as linear
from genssl.eval import segment
from genssl.features import extract
from genssl.metrics import sharpness as sharp
from genssl.models.build import METHODS
from genssl.runtime import generators
from genssl.training import monitor
from genssl.training.loop import Training
from tests.evaluations import BATCH, EVALUATIONS, MIXTURE_BATCH, built, images
from tests.fake_cuda import CUDA, HostReads, fake_cuda

SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("vae", {}),
    ("flow", {}),
    ("ddpm", {"sampler": "ancestral", "steps": 6}),
    ("ddpm", {"sampler": "ddim", "steps": 5, "eta": 0.5}),
    ("ddpm", {"sampler": "dpm++", "steps": 5}),
    ("ddpm", {"sampler": "heun", "steps": 5}),
    ("ddpm", {"sampler": "unipc", "steps": 5}),
]
# Once a schedule, for the samplers' coefficients
SCHEDULE = {"models/diffusion.py: NoiseSchedule.log_alphas_cumprod"}


@pytest.fixture
def reads() -> Iterator[HostReads]:
    with fake_cuda() as reads:
        yield reads


@pytest.mark.parametrize("name", METHODS)
def test_training_steps_read_nothing(name: str, reads: HostReads) -> None:
    method = built(name, CUDA)
    steps = Training(method, choose_views(method.config), images().to(CUDA), method.config).steps()
    for _ in range(4):
        step = next(steps)
    assert {loss.device for loss in step.losses.values()} == {CUDA}
    assert reads.places == []


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
@torch.no_grad()
def test_samplers_read_nothing(name: str, options: dict[str, Any], reads: HostReads) -> None:
    method: Any = built(name, CUDA).eval()
    x = method.sample(4, generators(0, "sample", range(4)), **options)
    assert (x.device, x.shape) == (CUDA, (4, 3, 32, 32))
    assert set(reads.places) <= SCHEDULE
    assert len(reads.places) <= 2


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_features_read_nothing(name: str, reads: HostReads) -> None:
    found = extract(built(name, CUDA).eval().features, images().images.to(CUDA), 4)
    assert (found.device, len(found)) == (CUDA, 12)
    assert reads.places == []


# Where an evaluation reads on purpose, as often for many images as for few: its numbers and pictures
ONCE = SCHEDULE | {
    # what the splits hold, before the work
    "eval/feature_cache.py: _check_classes", "figures.py: one_of_each", "models/vae.py: VAE.has_mixture",
    "eval/noise_sweep.py: InstanceRetrieval.class_chance",
    # which images are labeled, once a draw
    "eval/probe.py: _scores",
    # whether features are finite, once a split
    "eval/feature_cache.py: extract_features", "files.py: write_tensors",
    # numbers; of fidelity for each random half, of the probe for each epoch
    "metrics/linalg.py: principal_components", "metrics/collapse.py: rankme",
    "metrics/collapse.py: output_std", "metrics/collapse.py: output_scale",
    "metrics/collapse.py: _singular_values", "metrics/linear_probe.py: linear_probe",
    "metrics/linear_probe.py: _center_and_scale", "metrics/knn.py: confusion_matrix",
    "metrics/fidelity.py: _overlap", "metrics/fidelity.py: frechet_distance",
    "metrics/fidelity.py: squared_mmd", "metrics/fidelity.py: kernel_distance",
    "metrics/sharpness.py: diversity", "metrics/sharpness.py: mean_sharpness",
    "metrics/memorization.py: find_nearest_training", "eval/fidelity.py: numbers",
    "eval/reconstruct.py: reconstruct", "eval/reconstruct.py: reconstruct_from",
    "eval/latent_profile.py: latent_profile", "eval/importance_ll.py: importance_ll",
    "eval/knn_eval.py: knn_eval", "eval/knn_eval.py: _values", "eval/linear_eval.py: linear_eval",
    "eval/interpolate.py: interpolate_latents", "eval/interpolate.py: interpolate_through_noise",
    "eval/noise_sweep.py: sweep", "eval/noise_sweep.py: summarize", "eval/noise_sweep.py: _measure",
    "eval/inpaint.py: inpaint", "eval/inpaint.py: _measures", "eval/guidance.py: guidance_sweep",
    "eval/segment.py: _problem", "eval/segment.py: _picture",
    "metrics/segmentation.py: fit_pixel_classifiers",
    "eval/purify.py: purify", "eval/purify.py: _measure", "eval/purify.py: _draw_examples",
    "models/vae.py: fit_mixture", "training/monitor.py: Monitor._knn_accuracy",
    "training/monitor.py: Monitor.held_out_losses",
    # pictures, of a few images
    "figures.py: grid", "figures.py: one", "eval/features.py: draw_components",
    "eval/knn_eval.py: _neighbors", "eval/fidelity.py: draw_nearest_training",
    "eval/sensitivity.py: sensitivity", "eval/noise_sweep.py: _rows",
    "eval/reconstruct.py: Snapshots.__call__", "eval/reconstruct.py: _trajectories",
}  # fmt: skip
# Once a batch that takes as many passes as a sampler or a bound has steps; counts of an image's pixels; and
# which rows to take of a bank that stays on the host, and their labels
A_BATCH = {
    "eval/sample.py: draw_samples", "eval/bits_per_dim.py: _in_bits", "models/vlb.py: decoder_std",
    "metrics/knn.py: rows_of", "eval/probe.py: probe", "eval/segment.py: _confusions",
    "metrics/segmentation.py: pixel_confusion",
}  # fmt: skip
# Images sent to the device at once; of purification all, whose attacks take many passes through each
SENT = {"mixture": MIXTURE_BATCH, "purify": 16}


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_evaluations(
    evaluation: str, reads: HostReads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the device, and from the host with twice the images: reads are as many, but for those of batches."""
    name, changes, evaluate = EVALUATIONS[evaluation]
    method = built(name, CUDA, **changes).eval()
    monkeypatch.setenv("GENSSL_CACHE", str(tmp_path))
    monitored = ((monitor, "LOSS_IMAGES"), (monitor, "CHUNK"))
    for module, name in ((linear, "CROPPED"), (sharp, "ROWS"), (segment, "SHOWN"), *monitored):
        monkeypatch.setattr(module, name, BATCH)
    monkeypatch.setattr(quality, "SUBSETS", 3)
    counts = []
    for free, n in ((2**40, 8), (0, 16)):
        monkeypatch.setattr(loader, "free_bytes", lambda _, free=free: free)
        train, test = place(images(n), CUDA), place(images(n, "test"), CUDA)
        reads.places.clear()
        reads.sent.clear()
        evaluate(method, train, test)
        counts.append(Counter(reads.places))
    resident, streamed = counts
    assert set(resident | streamed) <= ONCE | A_BATCH
    counted = {"metrics/knn.py: confusion_matrix"} if evaluation == "segment" else set()  # a batch at a time
    assert all(streamed[name] <= resident[name] for name in streamed.keys() - A_BATCH - counted)
    assert max(reads.sent, default=0) <= SENT.get(evaluation, BATCH) * 3 * 32 * 32
