"""Every hyperparameter: one frozen pydantic model per method. No torch."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from genssl.errors import UserError, hint, parse_json
from genssl.settings import (
    LARGEST,
    MOST,
    RENAMED,
    SHORT,
    Config,
    Fraction,
    LabeledConfig,
    NonNegativeInt,
    Optimizer,
    PositiveInt,
    Share,
    checked_names,
    validated,
)

NOT_KNOWN = "this version does not know; update genssl if a newer one wrote it, else correct it"
ENCODERS = ("resnet18", "resnet34", "resnet50", "small", "compact")
LEAST_LOG_SIGNAL = -690.0  # of alpha-bar: smaller numbers are 0 in double precision
TIMM = "timm:"  # before the name of any network of timm


class VAEConfig(LabeledConfig):
    """The course's variational autoencoder (IFT6135, assignment 3) and what makes it good."""

    method: Literal["vae"] = "vae"

    width: PositiveInt = 32  # channels of the first layer; each further layer doubles them
    z_dim: PositiveInt = 32  # latent dimensions
    decoder_variance: Literal["unit", "learned"] = "unit"  # learned: one shared variance (sigma-VAE)
    mixture_components: Annotated[int, Field(ge=0, le=10_000)] = 10  # of the mixture; 0: none
    conditional: bool = False  # the networks are given the class of an image

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.image_size % 16:
            raise ValueError("image_size must be a multiple of 16: the encoder halves it four times")
        return self


class UNetConfig(LabeledConfig):
    """What the methods with a U-Net share."""

    # How the networks for CPUs were trained (docs/ddpm.md, "Networks for a CPU")
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "network=tiny": {"learning_rate": 4e-4},
        "network=compact": {"learning_rate": 8e-4, "schedule": "cosine", "warmup_epochs": 0.5},
    }
    on_a_cpu: ClassVar[Mapping[str, Any]] = {"network": "compact"}

    gradient_clip: PositiveFloat | None = 1.0
    ema_decay: Fraction | None = 0.999

    network: Literal["tiny", "compact", "small", "base"] = "small"  # about 1, 3, 10, 36 million parameters
    conditional: bool = False  # the network is given the class of an image
    dropout: Fraction = 0.0  # share of the features in each block that training sets to zero

    @model_validator(mode="after")
    def _network_fits(self) -> Self:
        if self.image_size % 8:
            raise ValueError("image_size must be a multiple of 8: the network halves it up to three times")
        return self


class DDPMConfig(UNetConfig):
    """Denoising diffusion (Ho et al. 2020) as in the course, with a choice of networks."""

    method: Literal["ddpm"] = "ddpm"
    has_noise_levels: ClassVar[bool] = True

    timesteps: Annotated[int, Field(gt=0, le=100_000)] = 1000  # T
    beta_schedule: Literal["linear", "cosine"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4  # of the linear schedule
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    scale_betas: bool = False  # times 1000 / T, so that every T ends equally noisy
    loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    features_t: NonNegativeInt = 50  # zero-based time at which features are taken
    prediction: Literal["epsilon", "v", "x"] = "epsilon"  # what the network predicts
    weighting: Literal["simple", "min_snr"] = "simple"  # of an image's loss by its noise
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    zero_terminal_snr: bool = False  # end in pure noise exactly; needs prediction=v or x

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.features_t >= self.timesteps:
            raise ValueError(f"features_t must be below timesteps ({self.timesteps}), not {self.features_t}")
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start:g} must not exceed beta_end {self.beta_end:g}")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "zero_terminal_snr needs prediction=v or prediction=x: pure noise has no epsilon to learn"
            )
        if self.zero_terminal_snr and (self.timesteps < 2 or self._log_signal() < LEAST_LOG_SIGNAL):
            raise ValueError(
                "zero_terminal_snr needs 2 timesteps or more, before the last of which something of an image "
                "is left; use more timesteps or a lower beta_end"
            )
        if self.scale_betas and self.beta_end * 1000 / self.timesteps >= 1:
            raise ValueError("scale_betas takes beta_end to 1 or beyond with so few timesteps; use more")
        return self

    def _log_signal(self) -> float:
        """log(alpha-bar) after the last step of linear betas; cosine ones end well within range."""
        if self.beta_schedule == "cosine":
            return 0.0
        scale = 1000 / self.timesteps if self.scale_betas else 1.0
        rise = (self.beta_end - self.beta_start) / max(1, self.timesteps - 1)
        betas = (min(scale * (self.beta_start + rise * i), 0.999) for i in range(self.timesteps))
        return sum(math.log1p(-beta) for beta in betas)


class FlowConfig(UNetConfig):
    """Flow matching (Lipman et al. 2023; Liu et al. 2023) with the networks of the DDPM."""

    method: Literal["flow"] = "flow"

    timestep_sampling: Literal["uniform", "logit_normal"] = "logit_normal"
    features_t: Share = 0.05  # time at which features are taken; 0: the image, 1: noise


# Adam in small batches learns more in few steps than the papers' recipes (docs/simsiam.md)
SMALL_BATCHES: Mapping[str, Any] = {
    "batch_size": 64,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "base_batch_size": None,
    "weight_decay": 0.0,
    "warmup_epochs": 0.0,
}
# And views of fewer pixels, and narrower heads: more images in the same time
SMALL_VIEWS: Mapping[str, Any] = {**SMALL_BATCHES, "view_size": 16, "projector_hidden": 512}


class EncoderConfig(LabeledConfig):
    """What the methods with an encoder of images share."""

    data: str = "cifar10"
    epochs: PositiveInt = 100
    optimizer: Optimizer = "sgd"
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["constant", "cosine"] = "cosine"

    # resnet18, resnet34, resnet50, small (a quarter as wide as 18), compact (for CPUs), or timm:NAME
    encoder: str = "resnet18"
    flip: Literal["auto", "on", "off"] = "auto"  # auto: off for digits and letters
    on_a_cpu: ClassVar[Mapping[str, Any]] = {"encoder": "compact"}
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "encoder=small": SMALL_BATCHES,
        "encoder=compact": SMALL_BATCHES,
    }

    @field_validator("encoder")
    @classmethod
    def _encoder_is_known(cls, encoder: str) -> str:
        if encoder not in ENCODERS and not (encoder.startswith(TIMM) and encoder != TIMM):
            raise ValueError(f"must be {', '.join(ENCODERS)}, or {TIMM}NAME for a network of timm")
        return encoder

    @model_validator(mode="after")
    def _is_seen_by_the_encoder(self) -> Self:
        if self.image_size < 8:
            raise ValueError("image_size must be 8 or more: the encoder halves it three times")
        return self


class ClassifierConfig(EncoderConfig):
    """A classifier: batch, rate, momentum and crops of He et al. 2016, section 4.2, for CIFAR-10.

    Its weight decay is that of Zagoruyko and Komodakis 2016, its schedule that of Loshchilov and Hutter 2017.
    """

    method: Literal["classifier"] = "classifier"

    batch_size: int = Field(128, ge=2, le=MOST)
    learning_rate: PositiveFloat = 0.1
    base_batch_size: PositiveInt | None = 128

    label_smoothing: Fraction = 0.0  # share of the target that is spread over all classes
    crop_padding: Annotated[int, Field(ge=0, le=LARGEST)] = 4  # black pixels around an image, before its crop

    needs_labels: ClassVar[bool] = True
    views: ClassVar[str] = "supervised"


class SelfSupervisedConfig(EncoderConfig):
    """What the self-supervised methods share: an encoder, a projector, and random views of each image.

    The views are those of SimSiam on CIFAR-10 (Chen and He 2021, appendix D): no blur there.
    """

    batch_size: int = Field(512, ge=2, le=MOST)
    learning_rate: PositiveFloat = 0.03
    base_batch_size: PositiveInt | None = 256
    knn_every: NonNegativeInt = 5
    online_probe: bool = False  # also train a linear classifier on the features, without changing them

    projector_dim: PositiveInt = 2048  # of its output
    projector_hidden: PositiveInt = 2048  # of its layers before
    projector_layers: Annotated[int, Field(gt=0, le=100)] = 2

    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.2  # smallest share of the area that a view shows
    view_size: Annotated[int, Field(ge=8, le=LARGEST)] | None = None  # pixels per side; none: the image's
    jitter: Share = 0.8  # probability of the next four, in an order of their own for each image
    brightness: Share = 0.4  # factors from 1 - this to 1 + this
    contrast: Share = 0.4
    saturation: Share = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # largest turn, of the whole circle
    grayscale: Share = 0.2  # probability
    blur: Share = 0.0  # probability

    views: ClassVar[str] = "standard"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **EncoderConfig.recipes,
        "encoder=compact": SMALL_VIEWS,
    }


class _SiameseConfig(SelfSupervisedConfig):
    """The choices of SimSiam's ablations (Chen and He 2021, section 4)."""

    stop_gradient: bool = True
    output_norm: bool = True  # a batch norm after the projector's last layer, without scale and offset
    predictor: Literal["mlp", "identity", "fixed"] = "mlp"  # fixed: an MLP that keeps its initial weights
    predictor_hidden: PositiveInt = 512
    fix_predictor_lr: bool = True  # keep the predictor's learning rate out of the schedule

    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **EncoderConfig.recipes,
        "encoder=compact": {**SMALL_VIEWS, "projector_dim": 512, "predictor_hidden": 128},
    }


class SimSiamConfig(_SiameseConfig):
    """SimSiam (Chen and He 2021), with the recipe of its appendix D."""

    method: Literal["simsiam"] = "simsiam"


class DSSLConfig(_SiameseConfig):
    """Directional self-supervised learning on top of SimSiam (Bai et al. 2021).

    As in its authors' `simsiam_cifar10/run.py`, the rate warms up, and the predictor has no rate of its own.
    """

    method: Literal["dssl"] = "dssl"

    warmup_epochs: NonNegativeFloat = 10.0
    fix_predictor_lr: bool = False
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        choice: {**recipe, "fix_predictor_lr": True} for choice, recipe in _SiameseConfig.recipes.items()
    }

    beta: Share = 0.1  # how much standard views follow heavy ones; 1 - beta: heavy follow standard
    naive: bool = False  # SimSiam on the heavy views, as if they were standard ones
    heavy_operations: Annotated[int, Field(gt=0, le=100)] = 2  # of RandAugment, one after the other
    heavy_magnitude: Annotated[int, Field(ge=0, le=30)] = 9

    views: ClassVar[str] = "directional"


class BYOLConfig(SelfSupervisedConfig):
    """Bootstrap your own latent (Grill et al. 2020), sizes and rate as in lightly's benchmark on CIFAR-10."""

    method: Literal["byol"] = "byol"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **EncoderConfig.recipes,
        "encoder=compact": {**SMALL_VIEWS, "predictor_hidden": 512},
    }

    learning_rate: PositiveFloat = 0.12
    projector_dim: PositiveInt = 256
    projector_hidden: PositiveInt = 1024
    predictor: Literal["mlp", "identity"] = "mlp"
    predictor_hidden: PositiveInt = 1024
    tau: Share = 0.99  # share of the target that a step keeps; constant 0: it is the online network
    tau_schedule: Literal["constant", "cosine"] = "cosine"  # cosine: to 1 at the end


class SimCLRConfig(SelfSupervisedConfig):
    """SimCLR (Chen et al. 2020), with the recipe for CIFAR-10 of its authors' google-research/simclr."""

    method: Literal["simclr"] = "simclr"

    optimizer: Optimizer = "lars"
    learning_rate: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 1e-4
    warmup_epochs: NonNegativeFloat = 10.0
    projector_dim: PositiveInt = 128
    temperature: PositiveFloat = 0.5
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.08


class MoCoConfig(SelfSupervisedConfig):
    """MoCo v2 (Chen, Fan et al. 2020), with the recipe of its authors' notebook for CIFAR-10.

    Of `moco_cifar10_demo` are batch, base rate, weight decay, queue, momentum, temperature and groups.
    """

    method: Literal["moco"] = "moco"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        choice: {**recipe, "key_groups": 4} for choice, recipe in SelfSupervisedConfig.recipes.items()
    }

    projector_dim: PositiveInt = 128
    queue_size: Annotated[int, Field(gt=0, le=2**20)] = 4096  # keys of earlier batches
    key_momentum: Share = 0.99  # share of the key network that a step keeps
    key_groups: PositiveInt = 8  # of a batch, which the key network's batch norms see one at a time
    temperature: PositiveFloat = 0.1


class BarlowTwinsConfig(SelfSupervisedConfig):
    """Barlow Twins (Zbontar et al. 2021), sizes and rate as in lightly's benchmark on CIFAR-10."""

    method: Literal["barlow_twins"] = "barlow_twins"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **EncoderConfig.recipes,
        "encoder=compact": {**SMALL_VIEWS, "projector_dim": 512},
    }

    learning_rate: PositiveFloat = 0.12
    lambd: NonNegativeFloat = 5e-3  # weight of the correlations between different outputs


class VICRegConfig(SelfSupervisedConfig):
    """VICReg (Bardes et al. 2022), with the sizes and the optimizer that solo-learn has for CIFAR-10.

    LARS with the rate, trust coefficient, clipping, weight decay and warm-up of its
    `scripts/pretrain/cifar/vicreg.yaml`. On ImageNet the paper has LARS with rate 0.2 and weight decay 1e-6.
    """

    method: Literal["vicreg"] = "vicreg"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **EncoderConfig.recipes,
        "encoder=compact": {**SMALL_VIEWS, "projector_dim": 512},
    }

    optimizer: Optimizer = "lars"
    learning_rate: PositiveFloat = 0.3
    trust_coefficient: PositiveFloat = 0.02
    trust_clip: bool = True
    warmup_epochs: NonNegativeFloat = 10.0
    projector_layers: Annotated[int, Field(gt=0, le=100)] = 3
    weight_decay: NonNegativeFloat = 1e-4
    invariance: NonNegativeFloat = 25.0  # weights of the three terms
    variance: NonNegativeFloat = 25.0
    covariance: NonNegativeFloat = 1.0


def methods() -> dict[str, type[Config]]:
    """Every method's name and config class."""
    kinds = {kind.model_fields["method"].default: kind for kind in _subclasses(Config)}
    return {name: kind for name, kind in kinds.items() if isinstance(name, str)}


def config_class(method: str) -> type[Config]:
    """The config class of a method; hyphens and capitals are accepted.

    Raises:
        UserError: the method is unknown.
    """
    known = methods()
    name = method.lower().replace("-", "_")
    if name not in known:
        raise UserError(f"unknown method {method!r}{hint(name, known)}; known: {', '.join(sorted(known))}")
    return known[name]


def make(method: str, changes: Mapping[str, Any]) -> Config:
    """The method's config with some settings changed, and those that come with such a choice.

    Raises:
        UserError: the method or a setting is unknown, or a value is wrong.
    """
    kind = config_class(method)
    return validated(kind, kind.with_recipe(checked_names(kind, changes)))


def read(text: str, source: str) -> Config:
    """Read a config from JSON.

    Args:
        text: the JSON.
        source: where it comes from, for messages.

    Raises:
        UserError: it is no JSON, or no config of this version.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise UserError(f"{source} is no valid JSON ({error!s:.200}); restore it") from error
    if not isinstance(values, dict) or not isinstance(values.get("method"), str):
        raise UserError(f"{source} is no config: it names no method")
    if values["method"].lower().replace("-", "_") not in methods():
        raise UserError(f"{source} is of a method {values['method']!r} that {NOT_KNOWN}")
    known = config_class(values["method"]).model_fields
    if unknown := sorted({*values} - {*known, *RENAMED}):
        names = ", ".join(name + hint(name, known, SHORT) for name in unknown)
        raise UserError(f"{source} has settings that {NOT_KNOWN}: {names}")
    try:
        return make(values["method"], values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _subclasses(kind: type[Config]) -> Iterator[type[Config]]:
    return (item for child in kind.__subclasses__() for item in (child, *_subclasses(child)))
