"""The options that commands share."""

from typing import Annotated, get_args

import pytest
import typer
from typer.testing import CliRunner

from genssl.commands import _options
from genssl.commands._options import Common, Sampling, numbers, whole, with_options
from genssl.errors import UserError
from genssl.models import ddpm, sampling_times


def invoke(*arguments: str) -> tuple[list[object], str]:
    seen: list[object] = []
    app = typer.Typer()

    @app.command()
    @with_options("limit")
    def command(
        common: Common,
        sampling: Sampling,
        n: Annotated[int, typer.Option("-n")] = 3,
        out: Annotated[str | None, typer.Option(help="An option of its own.")] = None,
    ) -> None:
        seen.extend([common, sampling, n, out])

    result = CliRunner().invoke(app, arguments)
    return seen, result.output


def test_options_go_to_the_parameters_whose_fields_they_are() -> None:
    seen, _ = invoke("-n", "4", "--seed", "7", "--steps", "5", "--out", "x", "--device", "cpu")
    assert seen == [Common(seed=7, device="cpu"), Sampling(steps=5), 4, "x"]
    assert Sampling(steps=5).given() == {"steps": 5}
    assert invoke()[0] == [Common(), Sampling(), 3, None]


def test_the_choices_of_samplers_and_spacings_are_those_of_the_ddpm() -> None:
    # Written twice, so that --help needs no torch
    assert set(get_args(_options.DiffusionSampler)) == set(get_args(ddpm.Sampler))
    choices, _ = get_args(get_args(_options.Spacing)[0])
    assert get_args(choices) == get_args(sampling_times.Spacing)


@pytest.mark.parametrize(("option", "value"), [("--limit", "3"), ("--device", "gpu")])
def test_what_a_command_does_not_take_is_refused(option: str, value: str) -> None:
    assert invoke(option, value)[0] == []


def test_its_own_option_comes_instead() -> None:
    assert "An option of its own." in invoke("--help")[1]


def test_numbers_are_repeated_or_have_commas_between_them() -> None:
    assert numbers(None, "--x") == numbers([], "--x") == []
    assert numbers(["0.01", "0.1,1", " 1e-2 , 5"], "--x") == [0.01, 0.1, 1, 5]
    for text in ("1,,2", "x", "inf", "nan", ""):
        with pytest.raises(UserError, match="--x takes numbers, with commas between them, not"):
            numbers([text], "--x")
    assert whole(3.0, "--x") == 3
    with pytest.raises(UserError, match=r"--x takes whole numbers, not 2\.5"):
        whole(2.5, "--x")
