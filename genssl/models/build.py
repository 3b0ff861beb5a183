"""From a config to a method: the only place in `models/` that reads one."""

import torch

from genssl.config import DDPMConfig, VAEConfig
from genssl.models.ddpm import DDPM
from genssl.models.diffusion import NoiseSchedule, cosine_schedule, linear_schedule
from genssl.models.method import Method
from genssl.models.unet import LAYOUTS, UNet
from genssl.models.vae import VAE
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
    raise TypeError(f"no method for {type(config).__name__}")


def _schedule(config: DDPMConfig) -> NoiseSchedule:
    if config.beta_schedule == "cosine":
        return cosine_schedule(config.timesteps)
    scaled = config.scale_betas
    return linear_schedule(config.timesteps, config.beta_start, config.beta_end, scaled=scaled)
