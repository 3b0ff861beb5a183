import re
from pathlib import Path
from typing import Any

from PIL import Image

from genssl.eval.result import EvalResult
from genssl.report import format, load, page, results
from genssl.report.figures import Cell, Table, embed
from genssl.report.results import Result

from . import folder

ABOUT = {"data": "svhn-images", "part": "test"}


def compared(place: Path) -> list[Table]:
    return results.compare(load.gather([str(place)]))


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def written(place: Path) -> str:
    made = page.write(load.gather([str(place)]), place / "report.html")
    return re.sub("<wbr>|</?span>", "", made.path.read_text(encoding="utf-8")).replace("\u00a0", " ")


def test_an_evaluation_that_the_report_never_heard_of_is_shown(tmp_path: Path) -> None:
    """Title, headline with units, interval and error, notes, a table and both pictures."""
    result = EvalResult(
        {
            "wobble_db": 3.25, "standard_error_db": 0.125, "hue": "teal", "probes": 7, "tried": True,
            "depth": {"level": 12.0, "low": 10.0, "high": 14.0},
            "by_angle": [{"angle": 15, "wobble_db": 2.5}],
        },
        notes=("wobbles are counted twice",), name="wobble-eval", title="Wobble of the model",
        headline=("wobble_db", "standard_error_db", "depth.level"), units={"depth.level": "furlongs"},
    )  # fmt: skip
    run = folder.run(tmp_path / "one", "vae")
    folder.evaluation(run, "wobble-eval-fast", {**result.to_json(), **ABOUT})
    folder.picture(run / "eval" / "wobble-eval-fast-close-up.png")
    html = written(tmp_path)
    section = html[html.index('id="one-wobble-eval-fast"') :]
    for text in (
        "Wobble of the model (fast)", "wobble (dB)", "3.25 ± 0.12", "depth level (furlongs)",
        "12.0 (10.0 to 14.0)", "hue: teal", "probes: 7", "tried: yes", "split: test", "by angle",
        "wobbles are counted twice", "genssl wobble-eval-fast this", "close up, of the run one",
    ):  # fmt: skip
        assert text in section, text
    [table] = compared(tmp_path)
    assert (table.title, table.columns) == (
        "Wobble of the model", ["run", "wobble (dB)", "depth level (furlongs)"]
    )  # fmt: skip
    assert table.rows == [[Cell("one", "fast"), Cell("3.25", "± 0.12"), Cell("12.0", "10.0 to 14.0")]]


def test_a_file_of_version_0_1_shows_its_numbers_under_its_command(tmp_path: Path) -> None:
    run = folder.run(tmp_path / "one", "vae")
    command = f"genssl --checkpoints {tmp_path} importance-ll one -k 7"
    values = {"command": command, "log_p_nats": -12.5, "k": 7, "notes": ["a bound"]}
    folder.evaluation(run, "importance-ll-k7", values)
    html = written(tmp_path)
    for text in ("Importance ll (k7)", "log p (nats)", "-12.5", "a bound"):
        assert text in html, text
    [table] = compared(tmp_path)
    assert texts(table) == [["one", "-12.5", "7"]]


def test_the_rows_of_a_table_in_the_headline_are_columns_over_runs(tmp_path: Path) -> None:
    about: dict[str, Any] = {
        **ABOUT,
        "title": "Sample quality",
        "headline": ["measures"],
        "measures": folder.MEASURES,
    }
    about["evaluation"] = "fidelity"
    about |= {"samples": 512, "features": "simsiam", "features_digest": "f" * 64}
    vae, ddpm = folder.run(tmp_path / "one", "vae"), folder.run(tmp_path / "two", "ddpm")
    folder.evaluation(vae, "fidelity", {**about, "sampling": {"prior": "normal", "seconds": 0.5}})
    more = [*folder.MEASURES, {**folder.MEASURES[1], "measure": "recall", "floor": 0.5}]
    folder.evaluation(
        ddpm, "fidelity-few", {**about, "measures": more, "samples": 64, "units": {"recall": "x"}}
    )
    [table] = compared(tmp_path)
    assert table.title == "Sample quality"
    assert table.columns == [
        "run", "Frechet distance ↓", "precision ↑", "recall (x) ↑", "samples"
    ]  # fmt: skip
    assert texts(table) == [
        ["one", "12.5", "0.62", "-", "512"],
        ["two", "12.5", "0.62", "0.62", "64"],
        ["floor", "3.25", "0.875", "0.5", "-"],
    ]
    assert table.references == 1
    assert table.rows[0][1].small == "11.0 to 14.0"
    assert table.rows[2][1].small == "3.00 to 3.50"
    assert table.conditions == "data: svhn-images; split: test; device: cpu; features: simsiam"


def test_every_further_column_of_such_a_table_is_a_reference(tmp_path: Path) -> None:
    row = {"measure": "mmd", "samples": 3.0, "low": 2.0, "high": 4.0, "test against test": 1.0,
           "test against test low": 0.5, "test against test high": 1.5, "train against test": 2.0,
           "better": "lower"}  # fmt: skip
    run = folder.run(tmp_path / "one", "vae")
    notes = ["test against test: sampling noise alone", "another note"]
    folder.evaluation(run, "fidelity", {"headline": ["measures"], "measures": [row], "notes": notes})
    [table] = compared(tmp_path)
    assert table.notes == notes[:1]
    assert [[cell.text, other.text] for cell, other in table.rows] == [
        ["one", "3.0"], ["test against test", "1.00"], ["train against test", "2"]
    ]  # fmt: skip
    assert table.rows[1][1].small == "0.50 to 1.50"


def test_references_that_disagree_are_shown_apart(tmp_path: Path) -> None:
    other = [{**folder.MEASURES[0], "floor": 4.0}]
    for i, measures in enumerate((folder.MEASURES, folder.MEASURES[:1], other)):
        run = folder.run(tmp_path / f"run-{i}", "vae")
        folder.evaluation(run, "fidelity", {"headline": ["measures"], "measures": measures})
    [table] = compared(tmp_path)
    assert table.references == 2
    assert table.rows[-2:] == [
        [Cell("floor", "beside run-0, run-1"), Cell("3.25", "3.00 to 3.50"), Cell("0.875")],
        [Cell("floor", "beside run-2"), Cell("4.00", "3.00 to 3.50"), Cell("-")],
    ]


def test_other_rows_of_a_table_with_the_headline_are_references(tmp_path: Path) -> None:
    own = {"accuracy": 0.5, "standard_error": 0.015625}
    pixels = {"what": "raw pixels", "accuracy": 0.25, "standard_error": 0.0125}
    for name in ("one", "two"):
        run = folder.run(tmp_path / name, "simsiam")
        values = {**own, "k": 200, "compared": [{"what": "features of this simsiam", **own}, pixels]}
        headline = ["accuracy", "standard_error", "k"]
        folder.evaluation(run, "knn-eval", {**values, "headline": headline, "curves": [{"epoch": 1, **own}]})
    [table] = compared(tmp_path)
    assert texts(table) == [
        ["one", "50.0 %", "200"], ["two", "50.0 %", "200"], ["raw pixels", "25.0 %", "-"]
    ]  # fmt: skip
    assert [row[1].small for row in table.rows] == ["± 1.6", "± 1.6", "± 1.2"]


def test_a_comparison_adds_what_runs_do_not_have(tmp_path: Path) -> None:
    one = folder.run(tmp_path / "one", "vae")
    folder.evaluation(one, "fidelity", {"samples": 64, "measures": folder.MEASURES})
    rows = [{"run": name, "samples": 64, "measures": folder.MEASURES} for name in ("one", "two")]
    folder.numbers(tmp_path / "compare-them" / "compare.json", {"fidelity": rows, "runs": []})
    [table] = compared(tmp_path)
    assert [row[0].text for row in table.rows] == ["one", "two", "floor"]


def test_what_studies_measured_of_a_run_is_not_shown_twice(tmp_path: Path) -> None:
    run = folder.run(tmp_path / "arms" / "arm", "simsiam")
    folder.evaluation(run, "ablate", {"measures": {"knn": {"knn_accuracy_full": 0.375}}})
    folder.evaluation(run, "compare-fidelity", {"values": {"samples": 3}})
    assert compared(tmp_path) == []
    assert "ablate" not in written(tmp_path)


def test_numbers_of_other_weights_say_so_in_the_table(tmp_path: Path) -> None:
    run = folder.run(tmp_path / "one", "vae", finished=False)
    folder.evaluation(run, "sample", {"sharpness": 2.5, "weights_sha256": "e" * 64})
    [table] = compared(tmp_path)
    assert table.rows[0][0].small == "unfinished: 3 epochs, other weights"


def test_conditions_are_what_fits_in_a_line() -> None:
    values = {
        "accuracy": 0.5, "accuracy_low": 0.25, "k": 200, "by_class": {str(i): i for i in range(10)},
        "dims": [1, 2], "many": list(range(99)), "part": "test", "loss": 0.25, "data_digest": "a" * 64,
        "sampling": {"nfe": 5}, "none": None, "headline": ["accuracy"], "command": "genssl x",
    }  # fmt: skip
    result = Result("run", "x", values)
    shown = {"part": "test", "k": "200", "dims": "1, 2", "loss": "0.25", "sampling": "NFE 5"}
    assert result.conditions() == shown
    del shown["loss"]
    assert result.conditions(outcomes=False) == shown | {"data_digest": "aaaaaaaa…"}


def test_long_tables_are_cut_and_say_so() -> None:
    table = results.table_of("levels", [{"t_prime": i, "accuracy": 0.5} for i in range(99)])
    assert (table.columns, len(table.rows)) == (["t'", "accuracy"], 20)
    assert table.conditions == "20 of 99 rows; the JSON file has all"
    assert table.rows[3] == [Cell("3"), Cell("50.0 %")]


def test_numbers_are_rounded_to_their_intervals_and_unclear_ones_say_so() -> None:
    assert format.with_error(-2883.98765, 0.8847) == ("-2,883.99", "± 0.88")
    assert format.with_error(12345.6, 1234.5) == ("12,300", "± 1,200")
    assert format.with_error(0.5, 0.0156, format.percent, 100) == ("50.0 %", "± 1.6")
    assert format.with_error(0.0031, 0.0104) == ("0.003", "± 0.010 (not resolved)")
    assert format.with_error(-0.02, 0.01) == ("-0.020", "± 0.010")
    assert format.with_error(0.0, 0.0) == ("0.000", "± 0.000")
    assert format.with_error(1.23456, None) == ("1.235", "")
    assert format.with_error(None, 0.5) == ("-", "")
    assert format.with_interval(176.0, 160.0, 190.0) == ("176", "160 to 190")
    assert format.with_interval(0.01, -0.02, 0.03) == ("0.010", "-0.020 to 0.030 (not resolved)")
    assert format.with_interval(0.625, 0.5, 0.75, format.percent, 100) == ("62 %", "50 to 75 %")
    assert format.with_interval(0.625, None, 0.75, format.percent, 100) == ("62.5 %", "")


def test_numbers_are_read_as_a_person_reads_them() -> None:
    numbers = [1234567, 1234567.8, 0.00012345, -3.0, True, "5", None, float("nan"), float("inf")]
    told = ["1,234,567", "1,234,568", "0.0001234", "-3", "-", "-", "-", "-", "-"]
    assert [format.number(number) for number in numbers] == told
    times = [0.0123, 59.4, 60, 3599.4, 3600, 7325, None]
    told = ["0.0123 s", "59.4 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "2 h 2 min", "-"]
    assert [format.seconds(time) for time in times] == told
    assert format.percent(0.12345) == "12.3 %"
    assert format.label("noised_psnr_db", "dB") == "noised PSNR (dB)"
    assert format.label("t_star_pixels.level", "noising steps") == "t* pixels level (noising steps)"
    assert format.label("bits_per_dim", "bits/dim") == "bits/dim"
    assert (format.label("training_seconds", "s"), format.label("seconds")) == ("training time", "time")
    assert (format.heading("wall-clock"), format.heading("knn-eval")) == ("Wall clock", "kNN eval")
    assert format.value_of("training_seconds", 75) == "1 min 15 s"


def test_small_grids_are_magnified_and_large_pictures_shrink(tmp_path: Path) -> None:
    problems: list[str] = []
    [small] = embed(folder.picture(tmp_path / "small.png", (300, 100)), "a", problems)
    assert (small.width, small.height, small.sharp) == (600, 200, True)
    assert small.source.startswith("data:image/png;base64,iVBOR")
    noise = Image.effect_noise((1700, 400), 90).convert("RGBA")
    noise.save(tmp_path / "noise.png")
    [large] = embed(tmp_path / "noise.png", "b", problems)
    assert large.source.startswith("data:image/jpeg;base64,")
    assert len(large.source) < (tmp_path / "noise.png").stat().st_size
    assert embed(tmp_path / "absent.png", "c", problems) == []
    assert problems == []
