"""From a config to a method: the only place in `models/` that reads one."""

from typing import Any

import torch

from genssl.config import (
    BarlowTwinsConfig,
    BYOLConfig,
    DDPMConfig,
    DSSLConfig,
    SelfSupervisedConfig,
    SimSiamConfig,
    VAEConfig,
    VICRegConfig,
)
from genssl.models.barlow_twins import BarlowTwins
from genssl.models.byol import BYOL
from genssl.models.ddpm import DDPM
from genssl.models.diffusion import NoiseSchedule, cosine_schedule, linear_schedule
from genssl.models.dssl import DSSL
from genssl.models.encoders import WIDTHS, Encoder
from genssl.models.method import Method
from genssl.models.simsiam import SimSiam
from genssl.models.unet import LAYOUTS, UNet
from genssl.models.vae import VAE
from genssl.models.vicreg import VICReg
from genssl.runtime import seed_of
from genssl.settings import Config


def build(config: Config) -> Method:
    """Build the method that `config` describes, its weights initialised from the config's seed."""
    with torch.random.fork_rng(devices=[]):  # torch initialises from the global generator
        torch.default_generator.manual_seed(seed_of(config.seed, "weights"))
        method = _construct(config)
    method.config = config
    return method.to(memory_format=torch.channels_last)


def _construct(config: Config) -> Method:
    match config:
        case VAEConfig(image_size=size, width=width, z_dim=z_dim, decoder_variance=variance):
            return VAE(size, 3, width, z_dim, variance, config.mixture_components)
        case DDPMConfig(image_size=size, loss=loss, features_t=features_t):
            network = UNet(LAYOUTS[config.network])
            return DDPM(_schedule(config), network, size, 3, loss, features_t)
        case SelfSupervisedConfig():
            return _siamese(config, Encoder(WIDTHS[config.encoder]))
    raise TypeError(f"no method for {type(config).__name__}")


def _siamese(config: SelfSupervisedConfig, encoder: Encoder) -> Method:
    sizes = [config.projector_hidden] * (config.projector_layers - 1) + [config.projector_dim]
    match config:
        case SimSiamConfig():
            return SimSiam(encoder, sizes, **_siamese_choices(config))
        case DSSLConfig(beta=beta, naive=naive):
            return DSSL(encoder, sizes, beta=beta, naive=naive, **_siamese_choices(config))
        case BYOLConfig(predictor=predictor, predictor_hidden=hidden, tau=tau):
            return BYOL(
                encoder, sizes, predictor=predictor, predictor_hidden=hidden, tau=tau,
                tau_schedule=config.tau_schedule,
            )  # fmt: skip
        case BarlowTwinsConfig(lambd=lambd):
            return BarlowTwins(encoder, sizes, lambd=lambd)
        case VICRegConfig(invariance=invariance, variance=variance, covariance=covariance):
            return VICReg(encoder, sizes, invariance=invariance, variance=variance, covariance=covariance)
    raise TypeError(f"no method for {type(config).__name__}")


def _siamese_choices(config: SimSiamConfig | DSSLConfig) -> dict[str, Any]:
    return {
        "predictor": config.predictor,
        "predictor_hidden": config.predictor_hidden,
        "stop_gradient": config.stop_gradient,
        "output_norm": config.output_norm,
        "constant_rate": config.constant_predictor_rate,
    }


def _schedule(config: DDPMConfig) -> NoiseSchedule:
    if config.beta_schedule == "cosine":
        return cosine_schedule(config.timesteps)
    scaled = config.scale_betas
    return linear_schedule(config.timesteps, config.beta_start, config.beta_end, scaled=scaled)
