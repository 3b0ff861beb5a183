"""Every hyperparameter: frozen pydantic models with a JSON round trip. A run's config.json reruns it."""

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from genssl.errors import UserError

SHORT = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay"}  # what people type
AnyConfig = TypeVar("AnyConfig", bound="Config")
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """What every method has. A method adds its own in a subclass that fixes `method`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    method: str

    # Data
    data: str = "svhn"  # svhn, cifar10, synthetic, or a path
    limit: PositiveInt | None = None  # train on the first so many images of the shuffled train split
    skip_bad: bool = False  # leave unreadable files out
    image_size: PositiveInt = 32  # pixels a side

    # Optimisation
    epochs: PositiveInt = 70
    batch_size: int = Field(64, ge=2)  # batch norm has no use for one image
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-4
    momentum: Fraction = 0.9  # of SGD
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate over the whole run
    warmup_epochs: NonNegativeFloat = 0.0  # linear from 0
    gradient_clip: PositiveFloat | None = None  # largest norm of the whole gradient
    ema_decay: Fraction | None = None  # of an average of the weights, used for inference

    # Reproducibility and precision
    seed: NonNegativeInt = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    # What is looked at while training
    sample_every: NonNegativeInt = 5  # epochs between pictures; 0: none

    views: ClassVar[str] = "plain"  # which views of an image the method trains on: data/augment.py

    @field_validator("data")
    @classmethod
    def _data_is_named(cls, data: str) -> str:
        if not data.strip():
            raise ValueError("must name a data set or a path")
        return data

    def to_json(self) -> str:
        """Indented JSON that `read` turns into the same config."""
        return self.model_dump_json(indent=2) + "\n"

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some settings changed, validated.

        Raises:
            UserError: a setting is unknown (with the closest name) or its value is wrong.
        """
        return _validated(type(self), {**self.model_dump(), **_checked_names(type(self), changes)})


class VAEConfig(Config):
    """The course's variational autoencoder (IFT6135, assignment 3) and what makes it good."""

    method: Literal["vae"] = "vae"

    width: PositiveInt = 32  # channels of the first layer; each further layer doubles them
    z_dim: PositiveInt = 32  # latent dimensions
    decoder_variance: Literal["unit", "learned"] = "unit"  # learned: one shared variance (sigma-VAE)
    mixture_components: NonNegativeInt = 10  # of the Gaussian mixture fitted to the latents; 0: none

    @model_validator(mode="after")
    def _size_halves_four_times(self) -> Self:
        if self.image_size % 16:
            raise ValueError("image_size must be a multiple of 16: the encoder halves it four times")
        return self


class DDPMConfig(Config):
    """Denoising diffusion (Ho et al. 2020) as in the course, with a choice of networks."""

    method: Literal["ddpm"] = "ddpm"

    gradient_clip: PositiveFloat | None = 1.0
    ema_decay: Fraction | None = 0.999

    timesteps: PositiveInt = 1000  # T
    beta_schedule: Literal["linear", "cosine"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4  # of the linear schedule
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    scale_betas: bool = False  # times 1000 / T, so that every T ends equally noisy
    loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    network: Literal["tiny", "small", "base"] = "small"  # about 1, 10 and 36 million parameters
    features_t: NonNegativeInt = 50  # zero-based time at which features are taken

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.image_size % 8:
            raise ValueError("image_size must be a multiple of 8: the network halves it up to three times")
        if self.features_t >= self.timesteps:
            raise ValueError(
                f"features_t must be less than timesteps ({self.timesteps}), not {self.features_t}"
            )
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start:g} must not exceed beta_end {self.beta_end:g}")
        if self.scale_betas and self.beta_end * 1000 / self.timesteps >= 1:
            raise ValueError("scale_betas takes beta_end to 1 or beyond with so few timesteps; use more")
        return self


def methods() -> dict[str, type[Config]]:
    """Every method's name and config class."""
    return {
        kind.model_fields["method"].default: kind
        for kind in _subclasses(Config)
        if isinstance(kind.model_fields["method"].default, str)
    }


def config_class(method: str) -> type[Config]:
    """The config class of a method; hyphens and capitals are accepted.

    Raises:
        UserError: the method is unknown.
    """
    known = methods()
    name = method.lower().replace("-", "_")
    if name not in known:
        raise UserError(f"unknown method {method!r}{_hint(name, known)}; known: {', '.join(sorted(known))}")
    return known[name]


def make(method: str, changes: Mapping[str, Any]) -> Config:
    """The method's config with some settings changed.

    Raises:
        UserError: the method or a setting is unknown, or a value is wrong.
    """
    kind = config_class(method)
    return _validated(kind, _checked_names(kind, changes))


def read(text: str, source: str) -> Config:
    """Read a config from JSON.

    Args:
        text: the JSON.
        source: where it comes from, for messages.

    Raises:
        UserError: it is no JSON, or no config of this version.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is no valid JSON ({error}); restore it") from error
    if not isinstance(values, dict) or not isinstance(values.get("method"), str):
        raise UserError(f"{source} is no config: it names no method")
    try:
        return make(values["method"], values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Turn `key=value` texts into values; none and null mean no value, a leading bracket means JSON.

    Raises:
        UserError: a text has no `=`.
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set takes key=value, not {setting!r}")
        parsed[name.strip().replace("-", "_")] = _parse_value(value.strip())
    return parsed


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by name: (before, after)."""
    old, new = before.model_dump(), after.model_dump()
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _parse_value(value: str) -> Any:
    if value.lower() in {"none", "null"}:
        return None
    if value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _subclasses(kind: type[Config]) -> Iterator[type[Config]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _checked_names(kind: type[Config], changes: Mapping[str, Any]) -> dict[str, Any]:
    for name in changes:
        if name not in kind.model_fields:
            raise UserError(
                f"unknown setting {name!r}{_hint(name, kind.model_fields)}; "
                f"`genssl train {kind.model_fields['method'].default} --dry-run` lists them"
            )
    return dict(changes)


def _validated(kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_line(problem) for problem in error.errors())) from error


def _line(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if not problem["loc"]:
        return message
    return f"{'.'.join(map(str, problem['loc']))} {message} (got {problem['input']!r})"


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = [SHORT[name]] if name in SHORT else difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
