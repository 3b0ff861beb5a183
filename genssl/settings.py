"""What every method's settings have in common, and how they are read from text. No torch."""

import difflib
import json
from collections.abc import Mapping
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
)

from genssl.errors import UserError

SHORT = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay"}  # what people type
AnyConfig = TypeVar("AnyConfig", bound="Config")
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
    limit: PositiveInt | None = None  # train on the first so many images of the shuffled train split
    skip_bad: bool = False  # leave unreadable files out
    image_size: PositiveInt = 32  # pixels a side

    # Optimisation
    epochs: PositiveInt = 70
    batch_size: int = Field(64, ge=2)  # batch norm has no use for one image
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-4
    rate_batch_size: PositiveInt | None = None  # learning_rate is for steps of so many images; none: of any
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
    knn_every: NonNegativeInt = 0  # epochs between nearest-neighbour accuracies of the features; 0: none

    views: ClassVar[str] = "plain"  # which views of an image the method trains on: data/augment.py

    @field_validator("data")
    @classmethod
    def _data_is_named(cls, data: str) -> str:
        if not data.strip():
            raise ValueError("must name a data set or a path")
        return data

    def rate_for(self, batch_size: int) -> float:
        """The learning rate for steps of so many images: scaled linearly (Goyal et al. 2017) if asked for."""
        if self.rate_batch_size is None:
            return self.learning_rate
        return self.learning_rate * batch_size / self.rate_batch_size

    def to_json(self) -> str:
        """Indented JSON that `read` turns into the same config."""
        return self.model_dump_json(indent=2) + "\n"

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some settings changed, validated.

        Raises:
            UserError: a setting is unknown (with the closest name) or its value is wrong.
        """
        return validated(type(self), {**self.model_dump(), **checked_names(type(self), changes)})


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Turn `key=value` texts into values; none and null mean no value, a leading bracket means JSON.

    lr, bs and wd stand for learning_rate, batch_size and weight_decay.

    Raises:
        UserError: a text has no `=`, or a key has two different values.
    """
    parsed = parse_repeated_settings(settings)
    for name, values in parsed.items():
        if len(values) > 1:
            raise UserError(f"--set {name} has {len(values)} values ({_texts(values)}); keep one of them")
    return {name: value for name, (value,) in parsed.items()}


def parse_repeated_settings(settings: list[str]) -> dict[str, list[Any]]:
    """As `parse_settings`, with all different values of each key, in their order.

    Raises:
        UserError: a text has no `=`.
    """
    parsed: dict[str, list[Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set takes key=value, not {setting!r}")
        name = name.strip().replace("-", "_")
        values = parsed.setdefault(SHORT.get(name, name), [])
        value = _parse_value(text.strip())
        if value not in values:
            values.append(value)
    return parsed


def _texts(values: list[Any]) -> str:
    return ", ".join("none" if value is None else str(value) for value in values)


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by name: (before, after)."""
    old, new = before.model_dump(), after.model_dump()
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def refuse_changes(config: Config, changes: Mapping[str, Any]) -> None:
    """Refuse to resume a run of `config` with other settings.

    Raises:
        UserError: a setting is unknown, or differs from the run's.
    """
    changed = differences(config, config.updated(changes))
    if changed:
        lines = [f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items()]
        raise UserError(f"cannot resume with other settings ({'; '.join(lines)}); start a new run for them")


def _parse_value(value: str) -> Any:
    if value.lower() in {"none", "null"}:
        return None
    if value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def checked_names(kind: type[Config], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `changes` whose names are all settings of `kind`; else a UserError with the closest name."""
    for name in changes:
        if name not in kind.model_fields:
            raise UserError(
                f"unknown setting {name!r}{hint(name, kind.model_fields)}; "
                f"`genssl train {kind.model_fields['method'].default} --dry-run` lists them"
            )
    return dict(changes)


def validated(kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """A config from its settings, else a UserError with every problem in one line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_line(problem) for problem in error.errors())) from error


def _line(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if not problem["loc"]:
        return message
    return f"{'.'.join(map(str, problem['loc']))} {message} (got {problem['input']!r})"


def hint(name: str, known: Mapping[str, Any]) -> str:
    """A question after the known name closest to one that is not known, or nothing."""
    close = [SHORT[name]] if name in SHORT else difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
