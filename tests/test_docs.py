"""The documentation says what the program does: commands exist, code runs, links lead somewhere."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import genssl
from benchmarks.bounds import Cost, tables
from genssl.cli import app
from genssl.eval import fidelity_features
from genssl.eval.sensitivity import not_rising
from genssl.models import build, method
from genssl.report.answers.questions import NUMBERS
from genssl.studies.assignment import SHARES, TRAINED
from genssl.studies.results import ALIKE, TIMES, Statistic, _pace

from . import command_reference
from .conftest import call
from .test_architecture import LEVELS

ROOT = Path(genssl.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> dict[str, Any]:
    """Every command by its words, e.g. "runs list"."""
    found: dict[str, Any] = {}

    def walk(group: Any, words: list[str]) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, [*words, name])
            else:
                found[" ".join([*words, name])] = command

    walk(typer.main.get_command(app), [])
    return found


def written_commands(page: Path) -> Iterator[str]:
    """The command lines of a page, from code blocks and inline code."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```(?:bash|console)?\n(.*?)```", text, re.DOTALL):
        yield from (line for line in block.splitlines() if line.startswith("genssl "))
    yield from re.findall(r"`(genssl [a-z][^`\n]*)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_written_command_exists_with_its_options(page: Path) -> None:
    known = commands()
    for line in written_commands(page):
        words = shlex.split(line.split("#")[0])[1:]
        names = [" ".join(words[:length]) for length in (3, 2, 1)]
        name = next((name for name in names if name in known), "")
        assert name, line
        parameters = known[name].params
        options = {option for p in parameters for option in [*p.opts, *p.secondary_opts]} | {"-h", "--help"}
        for word in words:
            if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
                assert word.split("=")[0] in options, f"{line}: {word}"


@pytest.mark.skipif(
    tuple(map(int, typer.__version__.split(".")[:2])) < (0, 29), reason="older versions print help otherwise"
)
def test_the_reference_of_commands_is_what_help_prints() -> None:
    assert command_reference.PAGE.read_text(encoding="utf-8") == command_reference.reference(), (
        "run `make docs`"
    )


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 120


def rows_of_design(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of docs/design.md."""
    text = (
        (ROOT / "docs" / "design.md")
        .read_text(encoding="utf-8")
        .split(f"## {heading}\n")[1]
        .split("\n## ")[0]
    )
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_design_has_the_levels_that_are_held() -> None:
    written = {
        int(level): set(re.findall(r"`(\w+)`", units)) for level, units, _ in rows_of_design("The layout")
    }
    assert written == LEVELS


def test_the_design_finds_the_code_behind_every_command() -> None:
    modules = {}
    for names, parsed, done in rows_of_design("Where the code behind a command is"):
        for name in re.findall(r"`([^`]+)`", names):
            modules[name] = [f"genssl/{path}" for path in re.findall(r"`([^`-]+\.py)`", parsed + done)]
    assert modules.keys() == commands().keys()
    for name, command in commands().items():
        assert all((ROOT / path).is_file() for path in modules[name]), name
        assert command.callback.__module__.replace(".", "/") + ".py" == modules[name][0], name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_page_on_extending_runs(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    config, method, line = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    for module in ("config", "models.method", "models.vae", "runtime"):
        exec(f"from genssl.{module} import *", names)
    exec("from typing import Literal, Self\nfrom pydantic import PositiveFloat, PositiveInt", names)
    exec("import torch\nfrom torch import Tensor, nn", names)
    exec(config, names)
    exec(method, names)
    monkeypatch.setattr(build, "METHODS", build.METHODS | eval(f"{{\n{line}}}", names))
    arguments = ["--data", digits, "--epochs", 3, "--sample-every", 1, "--out", tmp_path / "run"]
    result = call("train", "denoising", *arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "reconstructions-over-epochs.png").exists()
    assert call("runs", "verify", tmp_path / "run").exit_code == 0
    assert call("reconstruct", tmp_path / "run", "-n", 4).exit_code == 0
    assert call("sample", tmp_path / "run").exit_code == 2


def test_the_page_on_extending_has_every_ability_and_its_members() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    abilities = [kind for kind in vars(method).values() if getattr(kind, "_is_protocol", False)]
    abilities = [kind for kind in abilities if kind.__module__ == method.__name__]
    assert len(abilities) > 5
    for kind in abilities:
        (row,) = re.findall(rf"^\| `{kind.__name__}` \|(.*)$", page, re.MULTILINE)
        members = {name for name in {*vars(kind), *kind.__annotations__} if not name.startswith("_")}
        assert {name for name in members if f"`{name}" not in row} == set(), kind.__name__


def test_verdicts_on_times_have_one_margin_on_all_pages() -> None:
    for name in ("metrics", "scaling"):
        text = " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())
        assert f"within a factor of {ALIKE:g} are" in text, name
        assert "by a fifth" in text, name
    for file in (ROOT / "docs" / "results").glob("*ablate*.json"):
        baseline, *arms = json.loads(file.read_text(encoding="utf-8"))["rows"]
        for arm in arms:
            for what, name in TIMES.items():
                if name in arm["numbers"] and re.search(rf"(^|; ){what} ", arm["verdict"]):
                    times = (Statistic(**row["numbers"][name]) for row in (baseline, arm))
                    assert _pace(what, *times) in arm["verdict"].split("; "), (file.name, arm["arm"])


def test_the_tables_of_speed_are_what_was_measured() -> None:
    rows = json.loads((ROOT / "docs" / "results" / "speed.json").read_text())["rows"]
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "docs/speed.md"))
    assert len(rows) == 7
    for row in rows:
        rates = [row[f"{side}_images_per_second"] for side in ("peer", "peer_tuned", "genssl")]
        ratios = [row[f"ratio_to_{side}"] for side in ("peer", "peer_tuned")]
        cells = [f"{rate:.0f}" for rate in rates]
        cells += [f"{middle:.1f} ({low:.1f} to {high:.1f})" for middle, low, high in ratios]
        line = f"| {row['what']}; {row['peer']} | {' | '.join(cells)} |"
        assert line in page
        assert ("forward" in row["what"]) or line in readme


def test_the_assignments_page_has_every_question() -> None:
    text = (ROOT / "docs" / "assignment.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    asked = [row[0] for row in rows if len(row) == 5 and row[0][:1].isdigit()]
    assert asked == list(NUMBERS)
    assert f"Of a budget {TRAINED:.0%} goes to the trainings".replace("%", " %") in text
    assert 100 * SHARES["ddpm"] == pytest.approx(13)
    assert 100 * SHARES["simsiam"] == pytest.approx(5)
    relatives = [SHARES[name] for name in ("barlow-twins", "dssl", "vicreg", "byol")]
    assert (100 * min(relatives), 100 * max(relatives)) == pytest.approx((2.5, 6.5))
    trainings = {"ddpm-timesteps": 5, "simsiam": 4, "barlow-twins": 2, "dssl": 4, "vicreg": 4}
    assert 100 * sum(share * trainings.get(name, 1) for name, share in SHARES.items()) == pytest.approx(77.5)


def test_what_both_readers_read_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "docs" / "results" / "readable.json").read_text())
    page = (ROOT / "docs" / "results.md").read_text()
    table = page.split("<!-- readable.json -->")[1]
    titles = {
        "rendered test digits": "rendered test digits",
        "the same, patches shuffled": "the same, patches shuffled: digits broken up",
        "samples of ddpm": "shipped DDPM, DPM-Solver++, 20 calls",
        "samples of vae": "shipped VAE, N(0, I)",
        "samples of flow": "shipped flow, Heun, 19 calls",
    }
    assert [row["images"] for row in measured["rows"]] == list(titles)
    rows = {row["images"]: row for row in measured["rows"]}
    for name, row in rows.items():
        shares = [row[reader][p] for reader in ("residual", "plain", "both") for p in ("0.8", "0.9")]
        cells = [f"{100 * s['share']:.1f} ({100 * s['low']:.1f} to {100 * s['high']:.1f})" for s in shares]
        assert f"| {titles[name]} | {row['n']:,} | {' | '.join(cells)} |" in table
    assert rows["samples of ddpm"]["how"] == "dpm++, 20 calls, guidance 0.5"
    assert rows["samples of vae"]["how"] == "prior normal"
    text = " ".join(page.split())
    for name, reader in measured["readers"].items():
        assert f"`{name}` reads {reader['test_accuracy']['share']:.1%} of" in text.replace(" %", "%")

    def read_by(name: str, reader: str, p: str) -> str:
        return f"{100 * rows[name][reader][p]['share']:.1f} %"

    shares = [read_by("samples of ddpm", reader, "0.8") for reader in ("residual", "plain")]
    assert f"`residual` reads {shares[0]} of the DDPM's samples and `plain` {shares[1]}" in text
    shares = [read_by("the same, patches shuffled", reader, "0.8") for reader in ("residual", "plain")]
    assert f"it reads {shares[0]} of the images whose digits are broken up, and `plain` {shares[1]}" in text
    assert f"reads only {read_by('rendered test digits', 'plain', '0.9')} of rendered test digits" in text
    seconds = [f"{reader['cpu_seconds']:.0f} s" for reader in measured["readers"].values()]
    assert f"training took {seconds[0]} and {seconds[1]} of one core" in text

    readme = " ".join((ROOT / "README.md").read_text().split())
    both = [read_by("samples of ddpm", reader, "0.8") for reader in ("residual", "plain")]
    real = [read_by("rendered test digits", reader, "0.8") for reader in ("residual", "plain")]
    assert f"reads {both[0]} of 512 of the DDPM's samples with a probability of 0.8 or more" in readme
    assert f"a second, independent one, {both[1]}" in readme
    assert f"of rendered test digits {real[0]} and {real[1]}" in readme
    for model in ("vae", "ddpm"):
        shares = [read_by(f"samples of {model}", reader, "0.8") for reader in ("residual", "plain")]
        assert f"{shares[0]} and {shares[1]} of 512 samples" in text


def test_the_table_of_disturbances_is_what_was_measured_and_the_default_passes() -> None:
    spaces = json.loads((ROOT / "docs" / "results" / "sensitivity-svhn-images.json").read_text())["spaces"]
    rows = {space["features"]: space["disturbances"] for space in spaces}
    default = rows[fidelity_features.NAME]
    table = (ROOT / "docs" / "metrics.md").read_text().split("<!-- sensitivity-svhn-images.json -->")[1]
    for i in range(0, len(default), 3):
        cells = [row["over_undisturbed"] for row in default[i : i + 3]]
        cells += [rows[f"shipped {name}"][i + 1]["over_undisturbed"] for name in ("simsiam", "ddpm", "vae")]
        name = default[i]["disturbance"]
        assert f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |" in table
        if name in {"gray", "channels permuted", "blur"}:
            assert cells[1] >= 2
    (measured,) = [space for space in spaces if space["features"] == fidelity_features.NAME]
    assert measured["not_rising"] == not_rising(default) == []
    assert measured["features_digest"] == fidelity_features.default_features(torch.device("cpu")).digest


# What the comments below tables and paragraphs are held against: see "Numbers" in docs/design.md
RESULTS = ROOT / "docs" / "results"
COMMENT = re.compile(r"((?:[^\n]+\n)+) *<!-- ([\w./-]+\.jsonl?\b.*?) -->", re.DOTALL)
# Tables with decimals that hold no measurement, or that a test of their own holds: page and first cells
UNANNOTATED = {
    "README.md": {"| images/s |"},
    "metrics.md": {"| disturbance |"},
    "results.md": {"| | training | what it can do |", "| | n | residual, 0.8 |"},
    "segment.md": {"| method |"},
    "scaling.md": {"| | products, TFLOP/s |", "| case |"},
}
MEASURED = (
    "README",
    "results",
    "vae",
    "ddpm",
    "simsiam",
    "metrics",
    "data",
    "scaling",
    "purify",
    "segment",
    "flow",
)


def value_at(document: Any, path: str) -> float:
    """A number by its path, e.g. `rows[baseline].loss`.

    Brackets choose from a list the one entry that has this value, or else the entry of this index.
    """
    for name, chosen in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path):
        if isinstance(document, dict):
            document = document[name or chosen]
        else:
            having = [row for row in document if isinstance(row, dict) and chosen in map(str, row.values())]
            (document,) = having or [document[int(chosen)]]
    return float(document)


def rounds_to(value: float, text: str) -> bool:
    """Whether a number, rounded to the text's digits, is the text: 1,838.0, 79.9%, 4e-7."""
    number = text.replace(",", "").removesuffix("%")
    mantissa, _, exponent = number.partition("e")
    digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    # A five is rounded up or down
    return abs((100 * value if text.endswith("%") else value) - float(number)) <= digit / 2 * (1 + 1e-9)


def measurements(comment: str) -> Iterator[tuple[float, str]]:
    """The measured value and the text of every `path=text` in a comment, divided as `path/60=text` says."""
    document, prefix = None, ""
    for token in re.findall(r"(?:\[[^\]]*\]|[^\s\[])+", comment):
        if file := re.fullmatch(r"([\w./-]+\.jsonl?):?", token):
            path = ROOT / file[1] if "/" in file[1] else RESULTS / file[1]
            lines = path.read_text(encoding="utf-8")
            document = (
                [*map(json.loads, lines.splitlines())] if path.suffix == ".jsonl" else json.loads(lines)
            )
            prefix = ""
        elif token.endswith(":"):
            prefix = token[:-1]
        else:
            name, _, text = token.rpartition("=")
            name, _, divisor = name.partition("/")
            yield value_at(document, f"{prefix}.{name}") / float(divisor or 1), text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_numbers_of_the_pages_are_those_of_their_files(page: Path) -> None:
    for block, comment in COMMENT.findall(page.read_text(encoding="utf-8")):
        text, end = " ".join(block.split()).replace("\N{MINUS SIGN}", "-"), 0
        for value, written in measurements(comment):
            assert rounds_to(value, written), f"{comment[:60]}: {value} is written as {written}"
            pattern = rf"(?<![\w.,-]){re.escape(written).replace('%', ' ?%')}(?!\d|[.,]\d)"
            match = re.compile(pattern).search(text, end)
            assert match, f"{comment[:60]}: {written} is not above the comment, or not in this order"
            end = match.end()


@pytest.mark.parametrize("name", MEASURED)
def test_every_table_of_measurements_names_its_file(name: str) -> None:
    (page,) = [page for page in PAGES if page.stem == name]
    text = page.read_text(encoding="utf-8")
    comments = {block.splitlines()[-1]: comment for block, comment in COMMENT.findall(text)}
    for table in re.findall(r"(?:^ *\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = table.splitlines()
        if any(head.startswith(start) for start in UNANNOTATED.get(page.name, ())):
            continue
        cells = re.sub(r"`[^`]*`|\]\([^)]*\)", "", "\n".join(rows)).replace("\N{MINUS SIGN}", "-")
        decimals = re.findall(r"(?<![\w.])-?\d[\d,]*\.\d+(?:e-?\d+)?", cells)
        written = [text.removesuffix("%") for _, text in measurements(comments.get(rows[-1], ""))]
        assert decimals == [number for number in written if "." in number], head


def test_the_bounds_of_the_page_on_scaling_follow_from_the_counted_costs() -> None:
    costs = [Cost(**case) for case in json.loads((RESULTS / "cost.json").read_text())["cases"]]
    computed = [line.split(" | ") for table in tables(costs).values() for line in table.splitlines()]
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if any(line.startswith(f"| {cost.name} |") for cost in costs)]
    assert len(rows) == 15
    for row in rows:
        name, *cells = row.strip("| ").split(" | ")
        lines = [{cell.strip("| ") for cell in line[1:]} for line in computed if line[0] == f"| {name}"]
        assert any(set(cells) <= line for line in lines), row


def test_files_of_results_name_no_path_of_a_machine() -> None:
    for file in RESULTS.glob("*.json"):
        assert not re.search(r"[\" =]/\w", file.read_text(encoding="utf-8")), file.name
