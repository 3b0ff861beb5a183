"""What every config has, and how settings are checked: the base of `genssl.config`. No torch."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from genssl.errors import UserError, describe_invalid, hint

SHORT = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay"}  # what people type
# Names of earlier versions, still read everywhere: in files, and from the command line
RENAMED = {"rate_batch_size": "base_batch_size", "constant_predictor_rate": "fix_predictor_lr"}
FROM_DATA = {"num_classes"}
# Entries of a history's record that say when and how fast, and not what was measured
BOOKKEEPING = frozenset({"epoch", "step", "seconds", "learning_rate", "images_per_second", "split"})
USES_LABELS = ("conditional", "online_probe")  # choices that need them
Optimizer = Literal["adam", "adamw", "sgd", "lars"]
AnyConfig = TypeVar("AnyConfig", bound="Config")
MOST, LARGEST = 10**9, 4096  # far above what anybody trains, and within what torch counts with
PositiveInt = Annotated[int, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """What every method has. A method adds its own in a subclass that fixes `method`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, defer_build=True
    )

    method: str

    # Data
    data: str = "svhn"  # svhn, svhn-extra, cifar10, synthetic, or a path; with -remix after it, split anew
    limit: PositiveInt | None = None  # train on this many images of the shuffled train split
    holdout: Fraction = 0.0  # share of these images that is held out of training, as a validation split
    skip_bad: bool = False  # leave unreadable files out
    zip_encoding: str | None = None  # of names in a .zip that are not marked as UTF-8
    image_size: Annotated[int, Field(gt=0, le=LARGEST)] = 32  # pixels per side
    channels: int = 3  # of the images: 1 (gray) or 3; `genssl train` takes 1 where all images are gray
    fit: Literal["crop", "pad", "stretch"] = "crop"  # how images that are not square become so

    # Optimization
    init: str | None = None  # a run or model file whose weights training starts from
    epochs: PositiveInt = 70
    batch_size: int = Field(64, ge=2, le=MOST)  # batch norm has no use for one image
    optimizer: Optimizer = "adam"
    learning_rate: PositiveFloat = 1e-4
    base_batch_size: PositiveInt | None = None  # learning_rate is for this batch size; none: for any
    momentum: Fraction = 0.9  # of SGD and LARS
    trust_coefficient: PositiveFloat = 1e-3  # of LARS: about the share of a layer that a step changes
    trust_clip: bool = False  # LARS: no layer is faster than with SGD
    weight_decay: NonNegativeFloat = 0.0  # LARS: not of biases and norms
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate over the whole run
    warmup_epochs: NonNegativeFloat = 0.0  # linear from 0
    gradient_clip: PositiveFloat | None = None  # largest norm of the whole gradient
    ema_decay: Fraction | None = None  # of an average of the weights, used for inference

    # Reproducibility and precision
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    # What is measured and drawn while training
    sample_every: NonNegativeInt = 5  # epochs between pictures and held-out losses; 0: none
    knn_every: NonNegativeInt = 0  # epochs between nearest-neighbor accuracies of the features; 0: none

    needs_labels: ClassVar[bool] = False  # it learns them, whatever its settings
    views: ClassVar[str] = "plain"  # which views of an image the method trains on: data/augment/views.py
    has_noise_levels: ClassVar[bool] = False  # a diffusion process: commands take --t-prime
    # By choice, "network=compact": what the other settings are then, where they are not given
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    on_a_cpu: ClassVar[Mapping[str, Any]] = {}  # the choice for a CPU and little time

    @field_validator("data")
    @classmethod
    def _data_is_named(cls, data: str) -> str:
        if not data.strip():
            raise ValueError("must name a data set or a path")
        return data

    @field_validator("channels", mode="before")
    @classmethod
    def _is_gray_or_color(cls, channels: Any) -> int:
        if str(channels) not in {"1", "3"}:
            raise ValueError("must be 1 (gray) or 3 (color)")
        return int(channels)

    @property
    def uses_labels(self) -> bool:
        """Whether training needs the classes of the images."""
        return self.needs_labels or any(getattr(self, name, False) for name in USES_LABELS)

    @property
    def monitor_split(self) -> Literal["validation", "test"]:
        """The split that is measured and drawn while training."""
        return "validation" if self.holdout > 0 else "test"

    def rate_for(self, batch_size: int) -> float:
        """The learning rate for a batch size: proportional to it (Goyal et al. 2017) if a base is given."""
        if self.base_batch_size is None:
            return self.learning_rate
        return self.learning_rate * batch_size / self.base_batch_size

    def to_json(self) -> str:
        """Indented JSON that `read` turns into the same config."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def with_recipe(cls, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The changes, behind the settings that come with the choices among them."""
        chosen = {f"{name}={value}" for name, value in changes.items()}
        recipes = (recipe for choice, recipe in cls.recipes.items() if choice in chosen)
        return {name: value for part in (*recipes, changes) for name, value in part.items()}

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some settings changed, validated.

        Raises:
            UserError: a setting is unknown (with the closest name) or its value is wrong.
        """
        changes = checked_names(type(self), changes)
        values = {**self.model_dump(), **changes}
        # Without a choice that needs labels, the number of classes that came with them goes, too
        changed = validated(type(self), {name: values[name] for name in values if name not in FROM_DATA})
        return validated(type(self), values) if changed.uses_labels or FROM_DATA & {*changes} else changed


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by name: (before, after)."""
    old, new = before.model_dump(), after.model_dump()
    # What training takes from the data is no difference to settings that leave it open
    every = dict.fromkeys([*old, *new])
    names = [name for name in every if name not in FROM_DATA or None not in (old.get(name), new.get(name))]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def checked_names(kind: type[Config], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `changes` whose names are all settings of `kind`; else a UserError with the closest name.

    Settings with names of earlier versions get those of this one.
    """
    changes = {RENAMED.get(name, name): value for name, value in changes.items()}
    for name in changes:
        if name not in kind.model_fields:
            raise UserError(
                f"unknown setting {name!r}{hint(name, kind.model_fields, SHORT)}; "
                f"`genssl train {kind.model_fields['method'].default} --dry-run` lists them"
            )
    return changes


def validated(kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """A config from its settings, else a UserError with every problem in one line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(describe_invalid(problem) for problem in error.errors())) from error


class LabeledConfig(Config):
    """What the methods share that are given classes, always or by choice."""

    num_classes: PositiveInt | None = None  # that of the data, once training starts

    @model_validator(mode="after")
    def _has_use_for_classes(self) -> Self:
        if self.num_classes is not None and not self.uses_labels:
            choices = " or ".join(f"{name}=true" for name in USES_LABELS if name in type(self).model_fields)
            raise ValueError(f"num_classes is for {choices or 'a method with classes'}")
        return self
