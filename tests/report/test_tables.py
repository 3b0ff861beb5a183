from pathlib import Path

import pytest
from PIL import Image

from genssl.report import captions, format, load, tables
from genssl.report.figures import Cell, embed, with_origins
from genssl.report.load import Contents

from . import folder


def gathered(place: Path) -> Contents:
    return load.gather([str(place)])


def test_distances_that_compare_share_a_table_and_its_floor(tmp_path: Path) -> None:
    about = {"samples": 512, "features": "simsiam", "features_digest": "f" * 64, "measures": folder.MEASURES}
    about |= {"data": "../some/photos.tar.gz", "part": "test"}
    vae, ddpm = folder.run(tmp_path / "one", "vae"), folder.run(tmp_path / "two", "ddpm")
    folder.evaluation(vae, "fidelity", {**about, "sampling": {"prior": "normal", "seconds": 0.5}})
    way = {"sampler": "ddim", "network_calls_an_image": 50}
    folder.evaluation(ddpm, "fidelity-ddim-50", {**about, "sampling": way})
    folder.evaluation(ddpm, "fidelity-few", {**about, "samples": 64})
    many, few = sorted(tables.fidelity(gathered(tmp_path)), key=lambda table: -len(table.rows))
    assert [row[0].text for row in many.rows] == ["one", "two", "real images"]
    assert many.rows[0][1:4] == [
        Cell("normal prior", "0.5 s"), Cell("12.5", "11.0 to 14.0"), Cell("62 %", "50 to 75 %")
    ]  # fmt: skip
    assert many.rows[1][1].text == "ddim, 50 calls an image"
    assert many.rows[2][2:4] == [Cell("3.25", "3.00 to 3.50"), Cell("87.5 %")]
    assert (many.floor, few.floor) == (1, 1)
    assert many.columns[2:4] == ["Frechet distance ↓", "precision ↑"]
    for told in ("data: photos;", "split: test", "samples: 512", "ffffffff", "device: cpu"):
        assert told in many.about, told
    assert few.rows[0][1].text == "fidelity-few"


def test_a_comparison_adds_what_runs_do_not_have(tmp_path: Path) -> None:
    one = folder.run(tmp_path / "one", "vae")
    folder.evaluation(one, "fidelity", {"samples": 64, "measures": folder.MEASURES})
    rows = [{"run": name, "samples": 64, "measures": folder.MEASURES} for name in ("one", "two")]
    folder.numbers(tmp_path / "compare-them" / "compare.json", {"fidelity": rows, "runs": []})
    [table] = tables.fidelity(gathered(tmp_path))
    assert [row[0].text for row in table.rows] == ["one", "two", "real images"]


def test_likelihoods_have_their_errors_and_origin(tmp_path: Path) -> None:
    about = {"data": "digits", "part": "test", "images": 1952}
    vae, ddpm = folder.run(tmp_path / "v", "vae"), folder.run(tmp_path / "d", "ddpm")
    own = {"k": 100, "log_p_nats": -2883.99, "standard_error_nats": 0.8847, "bits_per_dim": 8.3544}
    folder.evaluation(vae, "importance-ll", {**about, **own, "effective_sample_size_mean": None})
    folder.evaluation(ddpm, "bits-per-dim", {**about, "bits_per_dim": 2.6919, "standard_error": 0.0093})
    first, second = tables.make(gathered(tmp_path))
    assert [cell.text for cell in first.rows[0]] == ["v", "-2,883.99", "-", "8.354", "100", "-", "-"]
    assert first.rows[0][1].small == "± 0.88"
    assert first.about == "data: digits; split: test; images: 1,952; device: cpu"
    assert second.rows[0][1] == Cell("2.6919", "± 0.0093")


def test_accuracies_of_evaluations_and_of_studies_stand_together(tmp_path: Path) -> None:
    own, arm = folder.run(tmp_path / "own", "simsiam"), folder.run(tmp_path / "arms" / "arm", "simsiam")
    pixels = {"what": "raw pixels", "accuracy": 0.25, "standard_error": 0.0125}
    about = {"data": "digits", "part": "test", "train_images": 5000, "test_images": 1000}
    shared = {**about, "accuracy": 0.5, "standard_error": 0.015625}
    folder.evaluation(own, "knn-eval", {**shared, "k": 200, "compared": [{"what": "itself"}, pixels]})
    folder.evaluation(own, "linear-eval", {**shared, "train_accuracy": 0.75})
    kept = {"data": {"train_images": 500, "test_images": 1000}, "knn": {"knn_accuracy_full": 0.375}}
    kept["linear"] = {"linear_test_accuracy": 0.4375}
    folder.evaluation(arm, "ablate", {"measures": kept})
    neighbors, linear = tables.make(gathered(tmp_path))
    assert [[cell.text for cell in row] for row in neighbors.rows] == [
        ["own", "50.0 %", "200", "5,000"],
        ["raw pixels", "25.0 %", "200", "5,000"],
        ["arm", "37.5 %", "-", "500"],
    ]  # fmt: skip
    assert [row[1].small for row in neighbors.rows] == ["± 1.6", "± 1.2", ""]
    assert [[cell.text for cell in row] for row in linear.rows] == [
        ["own", "50.0 %", "75.0 %", "5,000"], ["arm", "43.8 %", "-", "500"]
    ]  # fmt: skip
    assert linear.about == "data: digits; split: test; test images: 1,000; device: cpu"


def test_what_needs_no_training_is_shown_once(tmp_path: Path) -> None:
    shared = {"data": "digits", "accuracy": 0.5, "standard_error": 0.02, "k": 200, "test_images": 9}
    pixels = {"what": "raw pixels", "accuracy": 0.25, "standard_error": 0.0125}
    for name, accuracy in (("one", 0.25), ("two", 0.25), ("three", 0.125)):
        run = folder.run(tmp_path / name, "simsiam")
        compared = [{"what": "itself"}, {**pixels, "accuracy": accuracy}]
        folder.evaluation(run, "knn-eval", {**shared, "compared": compared})
    [table] = tables.make(gathered(tmp_path))
    pixel_rows = [row for row in table.rows if row[0].text == "raw pixels"]
    assert [(row[0].small, row[1].text) for row in pixel_rows] == [
        ("beside one, two", "25.0 %"), ("beside three", "12.5 %")
    ]  # fmt: skip


def test_a_floor_that_lacks_a_measure_is_the_same_floor(tmp_path: Path) -> None:
    more = {**folder.MEASURES[1], "measure": "authenticity", "floor": 0.5}
    other = {**folder.MEASURES[0], "floor": 4.0}
    sets = ([*folder.MEASURES, more], folder.MEASURES, [other])
    for i, measures in enumerate(sets):
        run = folder.run(tmp_path / f"run-{i}", "vae")
        folder.evaluation(run, "fidelity", {"samples": 64, "measures": measures})
    [table] = tables.fidelity(gathered(tmp_path))
    assert table.floor == 2
    assert [[cell.text for cell in row[2:]] for row in table.rows[-2:]] == [
        ["3.25", "87.5 %", "50.0 %"], ["4.00", "-", "-"]
    ]  # fmt: skip


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


def test_what_rows_share_is_said_once() -> None:
    rows = [[Cell("a")], [Cell("b")]]
    table = with_origins("t", ["run"], rows, [{"data": "x", "k": "1"}, {"data": "x", "k": "2"}], ["n", "n"])
    assert (table.about, table.columns, table.notes) == ("data: x", ["run", "k"], ["n"])
    assert [[cell.text for cell in row] for row in table.rows] == [["a", "1"], ["b", "2"]]


def test_numbers_are_read_as_a_person_reads_them() -> None:
    numbers = [1234567, 1234567.8, 0.00012345, -3.0, True, "5", None, float("nan"), float("inf")]
    told = ["1,234,567", "1,234,568", "0.0001234", "-3", "-", "-", "-", "-", "-"]
    assert [format.number(number) for number in numbers] == told
    times = [0.0123, 59.4, 60, 3599.4, 3600, 7325, None]
    told = ["0.0123 s", "59.4 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "2 h 2 min", "-"]
    assert [format.seconds(time) for time in times] == told
    assert format.percent(0.12345) == "12.3 %"
    assert format.of_name("noised_psnr_db") == "noised psnr (dB)"


def test_small_grids_are_magnified_and_large_pictures_shrink(tmp_path: Path) -> None:
    problems: list[str] = []
    small = embed(folder.picture(tmp_path / "small.png", (300, 100)), "a", problems, grid=True)
    assert small is not None
    assert (small.width, small.height, small.sharp) == (600, 200, True)
    assert small.source.startswith("data:image/png;base64,iVBOR")
    noise = Image.effect_noise((1700, 400), 90).convert("RGBA")
    noise.save(tmp_path / "noise.png")
    large = embed(tmp_path / "noise.png", "b", problems)
    assert large is not None
    assert large.source.startswith("data:image/jpeg;base64,")
    assert len(large.source) < (tmp_path / "noise.png").stat().st_size
    assert embed(tmp_path / "absent.png", "c", problems) is None
    assert problems == []


@pytest.mark.parametrize("name", ["nfe", "network_calls_an_image"])
def test_numbers_are_read_under_their_names_of_version_0_1_as_well(name: str) -> None:
    assert captions.SHOWN["sample"]["network calls per image"]({name: 20}) == "20"
