from pathlib import Path
from typing import Any

import pytest

from genssl import config as configs
from genssl import run_info, runs
from genssl.commands._options import parse_settings
from genssl.config import VAEConfig
from genssl.errors import UserError
from genssl.settings import RENAMED, Config, differences


def test_json_round_trip() -> None:
    config = VAEConfig(data="x.zip", learning_rate=3e-4, limit=7, decoder_variance="learned")
    assert configs.read(config.to_json(), "here") == config


def test_settings_are_parsed_by_their_type() -> None:
    changes = parse_settings(["epochs=3", "limit=none", "learning-rate=1e-3", "skip_bad=true"])
    config = configs.make("vae", changes)
    assert (config.epochs, config.limit, config.learning_rate, config.skip_bad) == (3, None, 1e-3, True)
    assert parse_settings(["lr=2", "bs=3", "wd=0"]) == {
        "learning_rate": "2", "batch_size": "3", "weight_decay": "0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, r"unknown setting 'epoch' \(did you mean 'epochs'\?\)"),
        ({"epochs": 0}, r"epochs must be greater than 0 \(got 0\)"),
        ({"learning_rate": "fast"}, "learning_rate must be a valid number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"decoder_variance": "big"}, "decoder_variance must be 'unit' or 'learned'"),
        ({"image_size": 20}, "image_size must be a multiple of 16"),
        ({"data": " "}, "data must name a data set"),
        ({"holdout": 1}, r"holdout must be less than 1 \(got 1\)"),
        ({"holdout": -0.1}, r"holdout must be greater than or equal to 0 \(got -0.1\)"),
    ],
)
def test_wrong_settings_are_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        configs.make("vae", changes)
    assert "\n" not in str(caught.value)


def test_unknown_method_has_a_hint() -> None:
    with pytest.raises(UserError, match="did you mean 'vae'"):
        configs.make("vea", {})


def test_a_setting_needs_a_value() -> None:
    with pytest.raises(UserError, match="--set takes key=value"):
        parse_settings(["epochs"])


def test_a_setting_has_one_value() -> None:
    with pytest.raises(UserError, match=r"--set limit has 2 values \(none, 5\); keep one of them"):
        parse_settings(["limit=none", "epochs=1", "limit=5"])
    assert parse_settings(["weight-decay=0", "weight_decay=0"]) == {"weight_decay": "0"}


def test_a_config_is_frozen_and_copies_are_validated() -> None:
    config = VAEConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]  # it is read-only
    with pytest.raises(UserError, match="epochs"):
        config.updated({"epochs": -1})


def test_differences_name_both_sides() -> None:
    assert differences(VAEConfig(), VAEConfig(epochs=3)) == {"epochs": (70, 3)}


@pytest.mark.parametrize("text", ["{", "[]", '{"method": 3}', '{"method": "vae", "speed": 3}'])
def test_damaged_config_is_named(text: str) -> None:
    with pytest.raises(UserError, match="here"):
        configs.read(text, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"method": "vae", "speed": 3}', "that this version does not know; update genssl .*: speed"),
        ('{"method": "vae", "epoch": 3}', r"epoch \(did you mean 'epochs'\?\)"),
        ('{"method": "gan"}', "method 'gan' that this version does not know; update genssl"),
        ('{"method": "ddpm", "network": "huge"}', "here: network must be"),
    ],
)
def test_a_config_of_a_newer_version_is_called_so(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configs.read(text, "here")


def test_weights_of_a_newer_version_are_called_so() -> None:
    metadata = {"format": "2", "config": "{}"}
    with pytest.raises(UserError, match="of format 2, which a newer version wrote; update genssl"):
        run_info.config_in(metadata, Path("model.safetensors"))


def test_defaults_are_the_courses() -> None:
    config = VAEConfig()
    assert isinstance(config, Config)
    assert (config.epochs, config.batch_size, config.learning_rate, config.z_dim) == (70, 64, 1e-4, 32)


def old_names(config: Config) -> str:
    """The config's JSON as earlier versions wrote it."""
    text = config.to_json()
    for old, new in RENAMED.items():
        assert f'"{new}"' in text
        text = text.replace(f'"{new}"', f'"{old}"')
    return text


def test_names_of_earlier_versions_are_read() -> None:
    config = configs.make("simsiam", {"base_batch_size": 128, "fix_predictor_lr": False})
    assert configs.read(old_names(config), "here") == config
    changes = parse_settings(["rate_batch_size=128", "constant-predictor-rate=false"])
    assert changes == {"base_batch_size": "128", "fix_predictor_lr": "false"}
    assert configs.make("simsiam", changes) == config
    assert config.updated({"rate_batch_size": None}).base_batch_size is None
    with pytest.raises(UserError, match="base_batch_size has 2 values"):
        parse_settings(["rate_batch_size=128", "base_batch_size=256"])


def test_a_run_of_an_earlier_version_is_the_begun_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    config = configs.make("simsiam", {"base_batch_size": 128})
    folder, _ = runs.new_folder(config)
    (folder / run_info.CONFIG).write_text(old_names(config))
    damaged, _ = runs.new_folder(config)
    (damaged / run_info.CONFIG).write_text("{")
    assert runs.begun(config) == folder
    assert runs.begun(config.updated({"seed": 1})) is None


@pytest.mark.parametrize(
    ("method", "settings"),
    [("classifier", {}), ("vae", {"conditional": True}), ("simsiam", {"online_probe": True})],
)
def test_the_classes_that_training_has_read_are_no_other_settings(
    method: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path))
    config = configs.make(method, {"data": "synthetic", **settings})
    folder, _ = runs.new_folder(config)
    (folder / run_info.CONFIG).write_text(config.updated({"num_classes": 10}).to_json())
    assert runs.begun(config) == folder
    assert runs.begun(config.updated({"num_classes": 9})) is None


@pytest.mark.parametrize("no", [False, "false", "off", 0])
def test_the_number_of_classes_goes_with_the_choice_that_needs_it(no: object) -> None:
    config = configs.make("ddpm", {"conditional": "true", "num_classes": 10})
    assert config.updated({"conditional": no}) == configs.make("ddpm", {})
    with pytest.raises(UserError, match="num_classes is for conditional=true"):
        config.updated({"conditional": no, "num_classes": 10})


def test_a_network_brings_its_recipe_where_nothing_else_is_said() -> None:
    compact = configs.make("ddpm", {"network": "compact"})
    assert (compact.learning_rate, compact.schedule, compact.warmup_epochs) == (8e-4, "cosine", 0.5)
    asked = configs.make("ddpm", {"network": "compact", "learning_rate": 1e-3, "schedule": "constant"})
    assert (asked.learning_rate, asked.schedule, asked.warmup_epochs) == (1e-3, "constant", 0.5)
    assert configs.make("simsiam", {"encoder": "small"}).optimizer == "adam"
    for method in ("simclr", "moco", "byol", "barlow_twins", "vicreg", "dssl"):
        small = configs.make(method, {"encoder": "small"})
        assert (small.optimizer, small.learning_rate, small.base_batch_size) == ("adam", 1e-3, None), method
        assert (small.weight_decay, small.warmup_epochs) == (0, 0), method
    # Views and heads go with the encoder where a method has them, and only there
    views = {
        method: configs.make(method, {"encoder": "compact"}).model_dump() for method in ("simclr", "simsiam")
    }
    assert [values["view_size"] for values in views.values()] == [16, 16]
    assert (views["simclr"]["projector_dim"], views["simsiam"]["projector_dim"]) == (128, 512)
    assert [values["projector_hidden"] for values in views.values()] == [512, 512]
    assert configs.make("classifier", {"encoder": "compact"}).optimizer == "adam"
    # as DSSL was before its authors' recipe was its default
    dssl = configs.make("dssl", {"encoder": "small"})
    assert isinstance(dssl, configs.DSSLConfig)
    assert dssl.fix_predictor_lr is True
    # a written config has all its settings, and is read as it is
    assert configs.read(asked.to_json(), "x") == asked
