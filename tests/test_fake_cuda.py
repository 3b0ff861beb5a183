"""Every method on a CUDA device without values: devices agree, and the host reads nothing on the way."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from genssl.config import make
from genssl.data.augment.views import choose_views
from genssl.data.split import Split
from genssl.eval.features import features
from genssl.eval.importance_ll import importance_ll
from genssl.eval.interpolate import interpolate_through_noise
from genssl.eval.latent_profile import latent_profile
from genssl.eval.reconstruct import reconstruct, reconstruct_from
from genssl.eval.sample import sample
from genssl.features import extract
from genssl.models.build import METHODS, build
from genssl.models.method import Method
from genssl.runtime import generators
from genssl.training.loop import Training
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
SCHEDULE = {"models/diffusion.py: log_alphas_cumprod"}  # once a schedule, for the samplers' coefficients


@pytest.fixture
def reads() -> Iterator[HostReads]:
    with fake_cuda() as reads:
        yield reads


def built(method: str, **changes: object) -> Method:
    common: dict[str, object] = {"batch_size": 4, "precision": "fp32", "epochs": 3}
    return build(make(method, SMALL.get(method, {"encoder": "small"}) | common | changes)).to(CUDA)


def images(n: int = 12, part: str = "train") -> Split:
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    return Split(pixels, torch.arange(n) % 2, ("a", "b"), "noise", part, "none").to(CUDA)


def nothing(*_: object) -> None:
    """No progress is shown."""


@pytest.mark.parametrize("name", METHODS)
def test_training_steps_read_nothing(name: str, reads: HostReads) -> None:
    method = built(name)
    steps = Training(method, choose_views(method.config), images(), method.config).steps()
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
    found = extract(built(name).eval().features, images().images, 4)
    assert (found.device, len(found)) == (CUDA, 12)
    assert reads.places == []


Evaluation = Callable[[Method, Split, Split], object]
EVALUATIONS: list[tuple[str, dict[str, object], Evaluation]] = [
    ("simsiam", {}, lambda m, _, b: features(m, b, tick=nothing)),
    ("vae", {}, lambda m, _, b: reconstruct(m, b, 2, seed=0, batch_size=4, tick=nothing)),
    ("vae", {}, lambda m, _, b: latent_profile(m, b, batch_size=4, tick=nothing)),
    ("vae", {}, lambda m, _, b: importance_ll(m, b, 3, seed=0, tick=nothing)),
    ("ddpm", {}, lambda m, _, b: interpolate_through_noise(
        m, b, rows=2, steps=3, seed=0, batch_size=4, noise_method="noise", t_prime=5, nfe=5, tick=nothing
    )),
    ("ddpm", {}, lambda m, _, b: interpolate_through_noise(
        m, b, rows=2, steps=3, seed=0, batch_size=4, noise_method="ddim", t_prime=20, nfe=5, tick=nothing
    )),
    ("ddpm", {}, lambda m, _, b: reconstruct_from(m, b, 5, 3, seed=0, batch_size=4, tick=nothing)),
    ("ddpm", {}, lambda m, _, b: sample(
        m, 3, seed=0, batch_size=2, tick=nothing, options={"sampler": "ancestral", "steps": 4}
    )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "evaluate"), EVALUATIONS)
def test_evaluations(name: str, changes: dict[str, object], evaluate: Evaluation, reads: HostReads) -> None:
    method = built(name, **changes).eval()
    evaluate(method, images(), images(part="test"))
    # Numbers and pictures are for the host, which reads them at least once
    assert reads.places
