"""Every method on a CUDA device without values: devices agree, and the host reads nothing on the way."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from genssl.config import make
from genssl.data import loader
from genssl.data.augment.views import choose_views
from genssl.data.loader import place
from genssl.data.split import Split
from genssl.eval import fidelity as quality
from genssl.eval import linear_eval as linear
from genssl.eval.bits_per_dim import bits_per_dim, flow_likelihood
from genssl.eval.feature_cache import PIXELS, FeatureSpace
from genssl.eval.features import features
from genssl.eval.fidelity import Settings, fidelity
from genssl.eval.fidelity_features import default_features
from genssl.eval.guidance import guidance_sweep
from genssl.eval.importance_ll import importance_ll
from genssl.eval.inpaint import inpaint, read_mask
from genssl.eval.interpolate import NoiseMethod, Shape, interpolate_latents, interpolate_through_noise
from genssl.eval.knn_eval import knn_eval
from genssl.eval.latent_profile import latent_profile
from genssl.eval.linear_eval import linear_eval
from genssl.eval.noise_sweep import sweep
from genssl.eval.reconstruct import reconstruct, reconstruct_from
from genssl.eval.sample import sample
from genssl.eval.sensitivity import sensitivity
from genssl.features import extract
from genssl.metrics import sharpness as sharp
from genssl.metrics.linear_probe import ProbeSettings
from genssl.models.build import METHODS, build
from genssl.models.diffusion import Variance
from genssl.models.method import Method
from genssl.runtime import generators
from genssl.train import monitor
from genssl.train.loop import Training
from genssl.train.monitor import Monitor
from tests.fake_cuda import CUDA, HostReads, fake_cuda

SMALL: dict[str, dict[str, object]] = {
    "vae": {"width": 8, "z_dim": 6},
    "ddpm": {"network": "tiny", "timesteps": 60, "ema_decay": 0.99},
    "flow": {"network": "tiny"},
}
SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("vae", {}),
    ("flow", {}),
    ("ddpm", {"sampler": "ancestral", "steps": 6}),
    ("ddpm", {"sampler": "ddim", "steps": 5, "eta": 0.5}),
    ("ddpm", {"sampler": "dpm++", "steps": 5}),
    ("ddpm", {"sampler": "heun", "steps": 5}),
    ("ddpm", {"sampler": "unipc", "steps": 5}),
]
BATCH = 4
# Once a schedule, for the samplers' coefficients
SCHEDULE = {"models/diffusion.py: NoiseSchedule.log_alphas_cumprod"}


@pytest.fixture
def reads() -> Iterator[HostReads]:
    with fake_cuda() as reads:
        yield reads


def built(method: str, **changes: object) -> Method:
    common: dict[str, object] = {"batch_size": 4, "precision": "fp32", "epochs": 3}
    return build(make(method, SMALL.get(method, {"encoder": "small"}) | common | changes)).to(CUDA)


def images(n: int = 12, part: str = "train") -> Split:
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    return Split(pixels, torch.arange(n) % 2, ("a", "b"), "noise", part, "none")


def nothing(*_: object) -> None:
    """No progress is shown."""


@pytest.mark.parametrize("name", METHODS)
def test_training_steps_read_nothing(name: str, reads: HostReads) -> None:
    method = built(name)
    steps = Training(method, choose_views(method.config), images().to(CUDA), method.config).steps()
    for _ in range(4):
        step = next(steps)
    assert {loss.device for loss in step.losses.values()} == {CUDA}
    assert reads.places == []


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
@torch.no_grad()
def test_samplers_read_nothing(name: str, options: dict[str, Any], reads: HostReads) -> None:
    x = built(name).eval().sample(4, generators(0, "sample", range(4)), **options)  # type: ignore[operator]
    assert (x.device, x.shape) == (CUDA, (4, 3, 32, 32))
    assert set(reads.places) <= SCHEDULE
    assert len(reads.places) <= 2


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_features_read_nothing(name: str, reads: HostReads) -> None:
    found = extract(built(name).eval().features, images().images.to(CUDA), 4)
    assert (found.device, len(found)) == (CUDA, 12)
    assert reads.places == []


# Where an evaluation reads on purpose, as often for many images as for few: its numbers and pictures
ONCE = SCHEDULE | {
    # what the splits hold, before the work
    "eval/feature_cache.py: _check_classes", "figures.py: one_of_each", "models/vae.py: VAE.has_mixture",
    "eval/noise_sweep.py: InstanceRetrieval.class_chance",
    # whether features are finite, once a split
    "eval/feature_cache.py: extract_features", "files.py: write_tensors",
    # numbers; of fidelity for each random half, of the probe for each epoch
    "metrics/linalg.py: principal_components", "metrics/collapse.py: rankme",
    "metrics/collapse.py: output_std", "metrics/collapse.py: output_scale",
    "metrics/collapse.py: _singular_values", "metrics/linear_probe.py: linear_probe",
    "metrics/linear_probe.py: _standard", "metrics/knn.py: confusion_matrix",
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
    "models/vae.py: fit_mixture", "train/monitor.py: Monitor._accuracy",
    "train/monitor.py: Monitor.held_out_losses",
    # pictures, of a few images
    "figures.py: grid", "figures.py: one", "eval/features.py: draw_components",
    "eval/knn_eval.py: _neighbors", "eval/fidelity.py: draw_nearest_training",
    "eval/sensitivity.py: sensitivity", "eval/noise_sweep.py: _rows",
    "eval/reconstruct.py: Snapshots.__call__", "eval/reconstruct.py: _trajectories",
}  # fmt: skip
# Once a batch that takes as many passes as a sampler or a bound has steps; and which rows to take of a bank
# that stays on the host
A_BATCH = {
    "eval/sample.py: draw_samples", "eval/bits_per_dim.py: _in_bits", "models/vlb.py: decoder_std",
    "metrics/knn.py: rows_of",
}  # fmt: skip
MIXTURE_BATCH = 512  # images of the train split that the mixture encodes at a time
SETTINGS = Settings(neighbors=1, resamples=2, batch_size=BATCH)


def genssl_1() -> FeatureSpace:
    # Not from its cache, which would outlive this device
    return default_features.__wrapped__(CUDA)


def run_fidelity(_: Method, train: Split, test: Split, space: FeatureSpace) -> object:
    samples = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    return fidelity(samples, test, train, space, replace(SETTINGS, device=CUDA), nothing)


def run_monitor(method: Method, train: Split, test: Split) -> object:
    watching = Monitor(choose_views(method.config), train, test, method.config, CUDA)
    values = watching.observe(method, 3, steps=100, last=True)
    assert {"test_loss", "knn_accuracy"} <= values.keys()
    watching.baselines(method, None)
    watching.data_statistics(method)
    return watching.draw(method)


def run_sensitivity(train: Split) -> object:
    colors = FeatureSpace("colors", lambda images: images.mean((2, 3)))
    return sensitivity(images(64).to(train.images.device), colors, BATCH, nothing, CUDA)


def run_linear_eval(method: Method, train: Split, test: Split, *, augment: bool) -> object:
    probe = ProbeSettings(epochs=2, batch_size=BATCH)
    return linear_eval(method, train, test, probe, augment=augment, batch_size=BATCH, tick=nothing)


def run_sweep(method: Method, train: Split, test: Split, space: FeatureSpace | None) -> object:
    return sweep(
        method, test, [5, 20], queries=8, seed=0, batch_size=BATCH, steps=3, space=space, bank_split=train,
        tick=nothing,
    )  # fmt: skip


def run_inpaint(method: Method, test: Split) -> object:
    mask, options = read_mask("box", 32), {"steps": 4, "jump_length": 2, "resamplings": 2}
    return inpaint(
        method, test, mask, mask_name="box", n=2, completions=2, seed=0, batch_size=BATCH, options=options,
        tick=nothing,
    )  # fmt: skip


def run_mixture(method: Method, train: Split) -> object:
    method.after_training(train.images)  # type: ignore[attr-defined]
    return sample(method, 4, seed=0, batch_size=BATCH, tick=nothing, options={"prior": "mixture"})


def run_interpolation(method: Method, test: Split, noise_method: NoiseMethod, t_prime: int) -> object:
    return interpolate_through_noise(
        method, test, rows=2, steps=3, seed=0, batch_size=BATCH, noise_method=noise_method, t_prime=t_prime,
        nfe=5, tick=nothing,
    )  # fmt: skip


def latents(method: Method, split: Split | None, shape: Shape) -> object:
    return interpolate_latents(method, split, rows=2, steps=3, shape=shape, seed=0, device=CUDA)


def run_bits(method: Method, test: Split, variance: Variance = "posterior") -> object:
    return bits_per_dim(method, test, t_samples=3, seed=0, batch_size=BATCH, tick=nothing, variance=variance)


def run_guidance(method: Method, train: Split, test: Split) -> object:
    return guidance_sweep(method, [0.0, 1.0], 4, test, train, PIXELS, SETTINGS, nothing)


def run_knn(method: Method, train: Split, test: Split, **options: Any) -> object:
    return knn_eval(method, train, test, batch_size=BATCH, tick=nothing, **options)


Evaluation = Callable[[Method, Split, Split], object]
EVALUATIONS: dict[str, tuple[str, dict[str, object], Evaluation]] = {
    "features": ("simsiam", {}, lambda m, _, b: features(m, b, batch_size=BATCH, tick=nothing)),
    "reconstruct": ("vae", {}, lambda m, _, b: reconstruct(m, b, 2, seed=0, batch_size=BATCH, tick=nothing)),
    "latent profile": ("vae", {}, lambda m, _, b: latent_profile(m, b, batch_size=BATCH, tick=nothing)),
    "importance": ("vae", {}, lambda m, _, b: importance_ll(m, b, 300, seed=0, tick=nothing)),
    "knn": ("simsiam", {}, run_knn),
    "knn, several k": ("byol", {}, lambda m, a, b: run_knn(m, a, b, k=[3, 1], baselines=False)),
    "knn, a share": ("vae", {}, lambda m, a, b: run_knn(m, a.take(6), b, k=2)),
    "linear": ("simsiam", {}, lambda m, a, b: run_linear_eval(m, a, b, augment=False)),
    "linear, a share": ("simsiam", {}, lambda m, a, b: run_linear_eval(m, a.take(6), b, augment=False)),
    "linear, augmented": ("simsiam", {}, lambda m, a, b: run_linear_eval(m, a, b, augment=True)),
    "latents of the prior": ("vae", {}, lambda m, _, __: latents(m, None, "linear")),
    "latents of images": ("vae", {}, lambda m, _, b: latents(m, b, "spherical")),
    "mixture": ("vae", {"mixture_components": 2}, lambda m, a, _: run_mixture(m, a)),
    "through one noise": ("ddpm", {}, lambda m, _, b: run_interpolation(m, b, "noise", 5)),
    "through inverted noise": ("ddpm", {}, lambda m, _, b: run_interpolation(m, b, "ddim", 20)),
    "reconstruct from a level": (
        "ddpm", {}, lambda m, _, b: reconstruct_from(m, b, 5, 3, seed=0, batch_size=BATCH, tick=nothing)
    ),
    "sample": (
        "ddpm", {}, lambda m, _, __: sample(
            m, 3, seed=0, batch_size=2, tick=nothing, options={"sampler": "ancestral", "steps": 4}
        ),
    ),
    "bound": ("ddpm", {}, lambda m, _, b: run_bits(m, b)),
    "bound, large variance": ("ddpm", {}, lambda m, _, b: run_bits(m, b, "large")),
    "likelihood of the flow": (
        "flow", {}, lambda m, _, b: flow_likelihood(m, b, seed=0, batch_size=BATCH, tick=nothing, steps=2)
    ),
    "noise levels in pixels": ("ddpm", {}, lambda m, a, b: run_sweep(m, a, b, None)),
    "noise levels in features": ("ddpm", {}, lambda m, a, b: run_sweep(m, a, b, genssl_1())),
    "inpaint": ("ddpm", {}, lambda m, _, b: run_inpaint(m, b)),
    "inpaint by the flow": ("flow", {}, lambda m, _, b: run_inpaint(m, b)),
    "monitor": ("simsiam", {"knn_every": 1, "sample_every": 1}, run_monitor),
    "monitor of a VAE": ("vae", {"knn_every": 1, "sample_every": 1}, run_monitor),
    "guidance": ("ddpm", {"conditional": True, "num_classes": 2}, run_guidance),
    "fidelity": ("vae", {}, lambda m, a, b: run_fidelity(m, a, b, genssl_1())),
    "fidelity in pixels": ("vae", {}, lambda m, a, b: run_fidelity(m, a, b, PIXELS)),
    "sensitivity": ("vae", {}, lambda _, a, __: run_sensitivity(a)),
}  # fmt: skip


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_evaluations(evaluation: str, reads: HostReads, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device, and from the host with twice the images: reads are as many, but for those of batches."""
    name, changes, evaluate = EVALUATIONS[evaluation]
    method = built(name, **changes).eval()
    for module, name in ((linear, "CROPPED"), (sharp, "ROWS"), (monitor, "LOSS_IMAGES"), (monitor, "CHUNK")):
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
    assert all(streamed[name] <= resident[name] for name in streamed.keys() - A_BATCH)
    assert max(reads.sent, default=0) <= (MIXTURE_BATCH if evaluation == "mixture" else BATCH) * 3 * 32 * 32
