"""The first five minutes: rendered digits, a small VAE, and every picture of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from genssl import checkpoint, figures, files
from genssl.config import VAEConfig
from genssl.data.load import load
from genssl.errors import UserError
from genssl.eval.importance_ll import importance_ll
from genssl.eval.interpolate import interpolate
from genssl.eval.latent_profile import latent_profile
from genssl.eval.outcome import Outcome
from genssl.eval.reconstruct import reconstruct
from genssl.eval.sample import sample
from genssl.runtime import choose_device
from genssl.train import run
from genssl.train.events import Listener, Loading, Note
from genssl.train.options import Options

LIKELIHOOD_IMAGES = 500
LIKELIHOOD_SAMPLES = 50


def demo(
    out: Path, minutes: float, device: str, listen: Listener, seed: int = 0
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Train a VAE on rendered digits for `minutes` and evaluate it.

    Args:
        out: a folder that does not exist yet, or an earlier demo's.
        minutes: of training.
        device: as in --device.
        listen: told what happens.
        seed: of everything random in the training.

    Returns:
        The pictures by title, and the main numbers.

    Raises:
        UserError: `out` holds something else.
    """
    folder = _place(out)
    config = VAEConfig(
        data="synthetic",
        learning_rate=1e-3,
        decoder_variance="learned",
        epochs=200,
        sample_every=5,
        seed=seed,
    )
    options = Options(device=device, max_minutes=minutes, out=folder)
    run.start(config, options, listen)
    listen(Note("trained; now the pictures and the numbers"))
    outcomes = _evaluate(folder, device, listen)
    pictures = {"data": out / "data.png"}
    train = load(config.data, "train", image_size=config.image_size)
    files.write_picture(pictures["data"], figures.grid(train.take(64).images))
    for name, outcome in outcomes.items():
        pictures[name] = out / f"{name}.png"
        files.write_picture(pictures[name], next(iter(outcome.figures.values())))
    values = {name: outcome.values for name, outcome in outcomes.items()}
    files.write_json(out / "numbers.json", values)
    pictures |= {name: folder / f"{name}.png" for name in ("curves", "wall-clock", "samples-over-epochs")}
    return pictures, _main_numbers(folder, values)


def _place(out: Path) -> Path:
    """The run folder in `out`: run, run-2, ...; an earlier demo's run is left as it is."""
    if out.exists() and any(out.iterdir()) and not (out / "run").is_dir():
        raise UserError(f"{out} holds something else; choose another --out")
    count = 1
    while (folder := out / ("run" if count == 1 else f"run-{count}")).exists():
        count += 1
    return folder


def _evaluate(folder: Path, device: str, listen: Listener) -> dict[str, Outcome]:
    where = choose_device(device)
    vae = checkpoint.load(folder, where)
    train = load("synthetic", "train").to(where)
    test = load("synthetic", "test").to(where)

    def ticking(text: str) -> Callable[[int, int], None]:
        return lambda done, total: listen(Loading(text, done, total))

    drawn: dict[str, Any] = {"seed": 0, "batch_size": 256, "tick": ticking("sampling")}
    path: dict[str, Any] = {"rows": 8, "steps": 10, "shape": "linear", "seed": 0, "device": where}
    few = test.take(LIKELIHOOD_IMAGES)
    outcomes = {
        "samples": sample(vae, 64, options={}, **drawn)[0],
        "reconstructions": reconstruct(vae, test, 32, seed=0, batch_size=256, tick=ticking("reconstructing")),
        "interpolations": interpolate(vae, test, **path),
        "latent-profile": latent_profile(vae, train, batch_size=256, tick=ticking("encoding")),
        "likelihood": importance_ll(vae, few, LIKELIHOOD_SAMPLES, seed=0, tick=ticking("weighing samples")),
    }
    if getattr(vae, "has_mixture", False):
        outcomes["samples-mixture"] = sample(vae, 64, options={"prior": "mixture"}, **drawn)[0]
    return outcomes


def _main_numbers(folder: Path, values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    info = checkpoint.inspect(folder)
    likelihood = values["likelihood"]
    return {
        "run": str(folder),
        "epochs": info.epoch,
        "reconstruction_rmse": values["reconstructions"]["rmse"],
        "log_p_nats": likelihood["log_p_nats"],
        "bits_per_dim": likelihood["bits_per_dim"],
        "test_images_of_the_likelihood": likelihood["images"],
        "active_units": values["latent-profile"]["active_units"],
    }
