"""Every evaluation of a small method and two small splits, on whatever device the method is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from genssl.config import make
from genssl.data.augment.views import choose_views
from genssl.data.split import Split
from genssl.eval.bits_per_dim import bits_per_dim, flow_likelihood
from genssl.eval.feature_cache import PIXELS, FeatureSpace
from genssl.eval.features import features
from genssl.eval.fidelity import FidelitySettings, fidelity
from genssl.eval.fidelity_features import default_features
from genssl.eval.guidance import guidance_sweep
from genssl.eval.importance_ll import importance_ll
from genssl.eval.inpaint import inpaint, read_mask
from genssl.eval.interpolate import NoiseMethod, Shape, interpolate_latents, interpolate_through_noise
from genssl.eval.knn_eval import knn_eval
from genssl.eval.latent_profile import latent_profile
from genssl.eval.linear_eval import linear_eval
from genssl.eval.noise_sweep import sweep
from genssl.eval.probe import LabelFractions, probe
from genssl.eval.purify import PurifySettings, purify
from genssl.eval.reconstruct import reconstruct, reconstruct_from
from genssl.eval.result import require_ability
from genssl.eval.sample import sample
from genssl.eval.segment import SegmentSettings, segment
from genssl.eval.sensitivity import sensitivity
from genssl.metrics.attacks import Attack
from genssl.metrics.linear_probe import ProbeSettings
from genssl.metrics.segmentation import ClassifierSettings
from genssl.models.build import build
from genssl.models.diffusion import Variance
from genssl.models.method import HasFlow, Method
from genssl.training.monitor import Monitor

BATCH = 4
SMALL: dict[str, dict[str, object]] = {
    "vae": {"width": 8, "z_dim": 6},
    "ddpm": {"network": "tiny", "timesteps": 60, "ema_decay": 0.99},
    "flow": {"network": "tiny"},
}


def built(method: str, device: torch.device, **changes: object) -> Method:
    common: dict[str, object] = {"batch_size": 4, "precision": "fp32", "epochs": 3}
    return build(make(method, SMALL.get(method, {"encoder": "small"}) | common | changes)).to(device)


def images(n: int = 12, part: str = "train") -> Split:
    source = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=source)
    return Split(pixels, torch.arange(n) % 2, ("a", "b"), "noise", part, f"{part} {n}")


def nothing(*_: object) -> None:
    """No progress is shown."""


MIXTURE_BATCH = 512  # images of the train split that the mixture encodes at a time
SETTINGS = FidelitySettings(neighbors=1, resamples=2, batch_size=BATCH)


def genssl_1(method: Method) -> FeatureSpace:
    # Not from its cache, which would outlive a device without values
    return default_features.__wrapped__(method.device)


def run_fidelity(method: Method, train: Split, test: Split, space: FeatureSpace) -> object:
    samples = images(4).images
    return fidelity(samples, test, train, space, replace(SETTINGS, device=method.device), nothing)


def run_monitor(method: Method, train: Split, test: Split) -> object:
    watching = Monitor(choose_views(method.config), train, test, method.config, method.device)
    values = watching.observe(method, 3, steps=100, last=True)
    assert {"test_loss", "knn_accuracy"} <= values.keys()
    watching.baselines(method, None)
    watching.data_statistics(method)
    return watching.draw(method)


def run_sensitivity(method: Method, train: Split) -> object:
    colors = FeatureSpace("colors", lambda images: images.mean((2, 3)))
    return sensitivity(images(64).to(train.images.device), colors, BATCH, nothing, method.device)


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
    method.after_training(train.images)
    return sample(method, 4, seed=0, batch_size=BATCH, tick=nothing, options={"prior": "mixture"})


def run_interpolation(method: Method, test: Split, noise_method: NoiseMethod, t_prime: int) -> object:
    return interpolate_through_noise(
        method, test, rows=2, steps=3, seed=0, batch_size=BATCH, noise_method=noise_method, t_prime=t_prime,
        nfe=5, tick=nothing,
    )  # fmt: skip


def latents(method: Method, split: Split | None, shape: Shape) -> object:
    return interpolate_latents(method, split, rows=2, steps=3, shape=shape, seed=0, device=method.device)


def run_bits(method: Method, test: Split, variance: Variance = "posterior") -> object:
    return bits_per_dim(method, test, t_samples=3, seed=0, batch_size=BATCH, tick=nothing, variance=variance)


def run_guidance(method: Method, train: Split, test: Split) -> object:
    return guidance_sweep(method, [0.0, 1.0], 4, test, train, PIXELS, SETTINGS, nothing)


def run_knn(method: Method, train: Split, test: Split, **options: Any) -> object:
    return knn_eval(method, train, test, batch_size=BATCH, tick=nothing, **options)


def run_segment(method: Method, train: Split, test: Split) -> object:
    train, test = (replace(split, masks=split.images[:, 0] % 3) for split in (train, test))
    settings = SegmentSettings((2,), 1, classes="all", classifiers=ClassifierSettings(2, 2))
    return segment(method, train, test, settings, tick=nothing)


def run_purify(method: Method, test: Split) -> object:
    classifier = built("classifier", method.device, num_classes=2).eval()
    classifier.class_names = test.classes
    attack = Attack(steps=1)
    settings = PurifySettings(attack, 1, 1, 1, defense_steps=2, t_primes=(5,), batch_size=BATCH)
    return purify(method, classifier, test, settings, name="classifier", tick=nothing)


def run_probe(method: Method, train: Split, test: Split) -> object:
    settings = LabelFractions((1.0,), linear=ProbeSettings(epochs=1, batch_size=BATCH))
    return probe(method, train, test, settings, baselines=True, batch_size=BATCH, tick=nothing)


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
    "probe": ("simsiam", {}, run_probe),
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
        "flow", {}, lambda m, _, b: flow_likelihood(
            require_ability(m, HasFlow, ""), b, seed=0, batch_size=BATCH, tick=nothing, steps=2
        ),
    ),
    "noise levels in pixels": ("ddpm", {}, lambda m, a, b: run_sweep(m, a, b, None)),
    "noise levels in features": ("ddpm", {}, lambda m, a, b: run_sweep(m, a, b, genssl_1(m))),
    "inpaint": ("ddpm", {}, lambda m, _, b: run_inpaint(m, b)),
    "inpaint by the flow": ("flow", {}, lambda m, _, b: run_inpaint(m, b)),
    "monitor": ("simsiam", {"knn_every": 1, "sample_every": 1}, run_monitor),
    "monitor of a VAE": ("vae", {"knn_every": 1, "sample_every": 1}, run_monitor),
    "guidance": ("ddpm", {"conditional": True, "num_classes": 2}, run_guidance),
    "segment": ("vae", {}, run_segment),
    "purify": ("ddpm", {}, lambda m, _, b: run_purify(m, b)),
    "fidelity": ("vae", {}, lambda m, a, b: run_fidelity(m, a, b, genssl_1(m))),
    "fidelity in pixels": ("vae", {}, lambda m, a, b: run_fidelity(m, a, b, PIXELS)),
    "sensitivity": ("vae", {}, lambda m, a, _: run_sensitivity(m, a)),
}  # fmt: skip
