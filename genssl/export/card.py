"""The model card of a run: what it is, its data, what was measured, and the commands for both."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genssl import files, hub, run_info
from genssl.errors import UserError, value_at
from genssl.run_info import RunInfo
from genssl.settings import BOOKKEEPING

# Terms of the data that weights were trained on, by the name of the source
TERMS = {
    "svhn": "SVHN (Netzer et al. 2011), for non-commercial use",
    "svhn-extra": "SVHN (Netzer et al. 2011), for non-commercial use",
    "cifar10": "CIFAR-10 (Krizhevsky 2009); no license is stated",
    "synthetic": "digits rendered by genssl (MIT)",
}


def model_card(folder: Path, name: str) -> str:
    """The README.md of a run on the hub, Markdown with its header of metadata.

    Args:
        folder: of the run; the results in its eval/ are in the card.
        name: OWNER/NAME.
    """
    info = run_info.inspect(folder)
    config = info.config
    epochs = run_info.progress_of(info.epochs_trained, config.epochs)
    lines = [
        "---", "library_name: genssl", f"tags: [genssl, {config.method}, image]", "---", "",
        f"# {folder.name}", "",
        f"A {config.method} trained with genssl for {epochs} epochs on {config.data}, {info.state}.", "",
        "```python", "import genssl", "", f'model = genssl.load("{hub.PREFIX}{name}")', "```", "",
        *_pictures(folder),
        "## Data", "",
        f"{config.data}: {TERMS.get(config.data.removesuffix('-remix'), 'terms of your own data')}.",
        *_trained_on(info), "",
        "## Last epoch", "", *_table({k: v for k, v in info.metrics.items() if k not in BOOKKEEPING}), "",
        *_results(folder),
        "## Settings", "", *_table(config.model_dump()), "",
        *_command(folder),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _pictures(folder: Path) -> Iterator[str]:
    for name in (*hub.PICTURES, hub.CURVES):
        if (folder / name).is_file():
            yield from (f"![{name.removesuffix('.png')}]({name})", "")


def _trained_on(info: RunInfo) -> Iterator[str]:
    if (images := info.training.get("images")) is not None:
        digest = str(info.training.get("data_digest", ""))[:12]
        yield f"Trained on {images:,} images (digest {digest}); weights {info.digest[:12]}."


def _results(folder: Path) -> Iterator[str]:
    """A section per evaluation: its headline numbers with their intervals, and its command."""
    for file in sorted((folder / "eval").glob("*.json")):
        try:
            record = files.read_record(file)
        except UserError:
            continue
        headline = record.get("headline")
        if not isinstance(headline, list) or not record.get("title"):
            continue
        numbers = {name: value_at(record, name) for name in headline}
        shown = {name: value for name, value in numbers.items() if not isinstance(value, list | dict | None)}
        errors = {name: record[name] for name in ("standard_error",) if isinstance(record.get(name), float)}
        rows = [row for name in headline for row in _measures(record.get(name))]
        yield from (f"## {record['title']}", "", *_table(shown | errors), *rows, "")
        yield from (
            f"`{record.get('command', '')}`, {record.get('device', 'a device that was not recorded')}.",
            "",
        )


def _measures(rows: Any) -> Iterator[str]:
    """Rows of a measure with its interval, and that of training images, as in `fidelity`."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) and "measure" in row for row in rows):
        return
    yield from ("| measure | samples | 95 % interval | training images |", "| --- | --- | --- | --- |")
    for row in rows:
        low, high = _shown(row.get("low")), _shown(row.get("high"))
        interval = f"{low} to {high}" if low and high else ""
        yield f"| {row['measure']} | {_shown(row.get('samples'))} | {interval} | {_shown(row.get('train'))} |"


def _table(values: Mapping[str, Any]) -> Iterator[str]:
    plain = {name: value for name, value in values.items() if not isinstance(value, list | dict)}
    if plain:
        yield from ("| | |", "| --- | --- |")
        yield from (f"| {name} | {_shown(value)} |" for name, value in plain.items())


def _shown(value: Any) -> str:
    text = "" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _command(folder: Path) -> Iterator[str]:
    origin = folder / run_info.ENVIRONMENT
    command = files.read_record(origin).get("command") if origin.exists() else None
    if isinstance(command, str):
        yield from ("## Command", "", "```bash", command, "```")
