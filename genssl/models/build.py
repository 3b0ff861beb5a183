"""From a config to a method: the registry of methods, and how their weights are initialized."""

import torch

from genssl.config import (
    BarlowTwinsConfig,
    BYOLConfig,
    ClassifierConfig,
    DDPMConfig,
    DSSLConfig,
    FlowConfig,
    MoCoConfig,
    SimCLRConfig,
    SimSiamConfig,
    VAEConfig,
    VICRegConfig,
)
from genssl.models.barlow_twins import BarlowTwins
from genssl.models.byol import BYOL
from genssl.models.classifier import Classifier
from genssl.models.ddpm import DDPM
from genssl.models.dssl import DSSL
from genssl.models.flow import Flow
from genssl.models.method import Method
from genssl.models.moco import MoCo
from genssl.models.simclr import SimCLR
from genssl.models.simsiam import SimSiam
from genssl.models.vae import VAE
from genssl.models.vicreg import VICReg
from genssl.runtime import seed_of
from genssl.settings import Config

# name -> (config class, method class); a new method is one more line
METHODS: dict[str, tuple[type[Config], type[Method]]] = {
    "vae": (VAEConfig, VAE),
    "ddpm": (DDPMConfig, DDPM),
    "flow": (FlowConfig, Flow),
    "simsiam": (SimSiamConfig, SimSiam),
    "simclr": (SimCLRConfig, SimCLR),
    "moco": (MoCoConfig, MoCo),
    "byol": (BYOLConfig, BYOL),
    "barlow_twins": (BarlowTwinsConfig, BarlowTwins),
    "vicreg": (VICRegConfig, VICReg),
    "dssl": (DSSLConfig, DSSL),
    "classifier": (ClassifierConfig, Classifier),
}


def build(config: Config) -> Method:
    """Build the method that `config` describes, its weights initialized from the config's seed.

    Examples:
        >>> vae = build(VAEConfig(width=4, z_dim=5))
        >>> vae.config.z_dim, vae.features(torch.zeros(2, 3, 32, 32)).shape
        (5, torch.Size([2, 5]))
    """
    _, method_class = METHODS[config.method]
    # torch initializes layers from its global generator: it is seeded here, and put back afterwards
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(config.seed, "weights"))
        method = method_class.from_config(config)
    method.config = config
    return method.to(memory_format=torch.channels_last)
