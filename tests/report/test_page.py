import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from genssl.report import format, load, page

from . import folder

VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


class Reader(HTMLParser):
    """The elements of a page, which must be closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.data += "" if tag == "wbr" else " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.data += " "

    def handle_data(self, data: str) -> None:
        self.data += data

    @property
    def words(self) -> list[str]:
        return self.data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(place: Path, template: page.Template = "assignment") -> tuple[page.Written, Reader]:
    made = page.write(load.gather([str(place)]), place / "report.html", template)
    return made, Reader(made.path.read_text(encoding="utf-8"))


def test_the_thirteen_figures_stand_in_order_with_their_numbers_and_commands(tmp_path: Path) -> None:
    made, read = written(folder.whole(tmp_path))
    anchors = [each["id"] for each in read.all("article") if str(each.get("id")).startswith("figure-")]
    assert anchors == [f"figure-{number}" for number in range(1, 14)]
    assert all(figure.picture for figure in made.figures)
    assert [figure.question for figure in made.figures] == [
        "1.3 a", "1.3 b", "1.3 c", "1.3 d", "1.3 e", "1.3 f",
        "2.2 a", "2.2 b", "2.2 c", "2.2 d", "3.4", "3.5 a", "3.5 b",
    ]  # fmt: skip
    assert made.problems == []
    for told in ("1 h 2 min", "176 (160 to 190)", "genssl interpolate this", "verdict on projector_dim=4096"):
        assert told in read.text, told
    assert dict(made.figures[0].numbers)["images a second"] == "40"
    assert "at most 500" in read.text


def test_everything_is_known_of_a_run_that_was_just_trained(vae_run: Path) -> None:
    """Without an evaluation: what was trained on what is recorded by the training itself."""
    [run] = load.gather([str(vae_run)]).runs
    summary = dict(page._summary(run))
    assert summary["train images"] == "120"
    assert format.NONE not in summary.values()


@pytest.mark.parametrize(
    ("training", "shown"),
    [
        ({"parameters": 1234, "all_parameters": 1234}, "parameters 1,234"),
        ({"parameters": 1234, "all_parameters": 5678}, "parameters 1,234 trained of 5,678"),
        ({}, "parameters -"),
    ],
)
def test_parameters_are_those_that_are_trained(tmp_path: Path, training: object, shown: str) -> None:
    run = folder.run(tmp_path / "vae-digits", "vae")
    config = json.loads((run / "config.json").read_text())
    folder.weights(run / "model.safetensors", config, training=training)
    _, read = written(tmp_path)
    assert shown in read.text.replace("genssl", "")


def test_an_ablation_shows_the_arm_that_a_figure_is_of(tmp_path: Path) -> None:
    made, _ = written(folder.whole(tmp_path))
    [table] = made.figures[11].tables
    assert [row[0].text for row in table.rows] == ["baseline", "predictor=identity"]
    assert [row[1].text for row in table.rows] == ["50.0 %", "25.0 %"]
    assert [row[0].small for row in table.rows] == ["", "collapsed"]


def test_an_arm_of_that_change_alone_is_rather_shown(tmp_path: Path) -> None:
    both = {"stop_gradient": False, "output_norm": False}
    folder.ablation(tmp_path / "study", [both, {"stop_gradient": False}])
    folder.picture(tmp_path / "study" / "ablate-stop_gradient-False.png", (90, 30))
    made, _ = written(tmp_path)
    [table], [picture] = made.figures[10].tables, made.figures[10].pictures
    assert [row[0].text for row in table.rows] == ["baseline", "stop_gradient=False"]
    assert picture.width == 3 * picture.height


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    _, read = written(folder.whole(tmp_path))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in read.tags}
    images = read.all("img")
    assert len(images) >= 13
    assert all(str(image["src"]).startswith("data:image/") and image["alt"] for image in images)
    places = {each["id"] for _, each in read.tags if each.get("id")}
    links = [str(link["href"]) for link in read.all("a")]
    assert all(link[0] == "#" and link[1:] in places for link in links)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert "url(" not in html


def test_names_and_values_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)<\\script>\"'&"
    run = folder.run(tmp_path / "<script>alert(1)<>", "vae", data=evil)
    folder.evaluation(run, "sample", {"prior": evil, "command": evil, "notes": [evil], "device": evil})
    folder.evaluation(run, evil, {evil: 3.5})
    folder.numbers(tmp_path / "about.json", {"title": evil, "notes": [evil]})
    (run / "SHIPPED.txt").write_text(evil)
    made, read = written(tmp_path)
    assert read.all("script") == []
    assert "<script" not in made.path.read_text(encoding="utf-8")
    assert read.text.count("<script>alert(1)<") >= 8


def test_a_page_of_other_runs_has_no_empty_slots(tmp_path: Path) -> None:
    folder.run(tmp_path / "byol-photos", "byol")
    made, read = written(tmp_path, "runs")
    assert made.figures == []
    assert "assignment" not in read.text
    assert "Not there yet" not in read.text
    assert len(written(tmp_path, "assignment")[0].figures) == 13


def test_a_page_of_runs_shows_the_figures_that_are_there(tmp_path: Path) -> None:
    made, _ = written(folder.whole(tmp_path), "runs")
    assert [figure.label for figure in made.figures] == [f"Figure {n}" for n in range(1, 14)]
    (tmp_path / "vae-digits" / "wall-clock.png").unlink()
    made, _ = written(tmp_path, "runs")
    assert made.figures[0].label == "Figure 2"


def test_what_is_missing_comes_with_its_command(tmp_path: Path) -> None:
    folder.run(tmp_path / "vae-digits", "vae")
    made, read = written(tmp_path)
    there = [number for number, figure in enumerate(made.figures, 1) if figure.picture]
    assert there == [1, 2, 3]
    assert made.figures[3].usual == [f"genssl sample {tmp_path}/vae-digits -n 64"]
    new = f"genssl --checkpoints {tmp_path}"
    assert made.figures[9].usual == [f"{new} train ddpm --epochs 70", f"{new} sample ddpm -n 64"]
    assert made.figures[11].usual == [f"{new} ablate simsiam --predictor identity"]
    assert made.figures[12].usual == [f"{new} ablate simsiam --proj-dim 4096"]
    for figure in made.figures:
        assert all(page.relative(command, tmp_path) in read.text for command in figure.usual)
        assert bool(figure.picture) != bool(figure.usual)


def test_commands_have_no_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder.run(tmp_path / "runs" / "vae-digits", "vae")
    made = f"genssl --checkpoints {tmp_path}/runs sample {run} --set data={tmp_path}/digits.tar --out a.png"
    folder.evaluation(run, "sample", {"command": made})
    for here, paths in (("elsewhere", (".", "vae-digits", "../digits.tar")),
                        (".", ("runs", "runs/vae-digits", "digits.tar"))):  # fmt: skip
        (tmp_path / here).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / here)
        html = written(tmp_path / "runs")[0].path.read_text(encoding="utf-8")
        root, ref, data = paths
        told = f"genssl --checkpoints {root} sample {ref} --set data={data} --out a.png"
        assert told in Reader(html).text
        assert str(tmp_path) not in html
        assert "to be run in .., seen from" in html or here == "elsewhere"
    assert page.relative("genssl 'unclosed", tmp_path) == "genssl 'unclosed"


def test_words_break_at_signs_and_never_in_the_middle(tmp_path: Path) -> None:
    folder.ablation(tmp_path / "study", [{"stop_gradient": False}])
    html = written(tmp_path)[0].path.read_text(encoding="utf-8")
    assert "stop_<wbr>gradient=<wbr>False" in html
    assert "anywhere" not in html
    assert "break-all" not in html


def test_an_unfinished_run_is_to_be_resumed(tmp_path: Path) -> None:
    folder.run(tmp_path / "vae-digits", "vae", finished=False)
    made, read = written(tmp_path)
    assert made.figures[3].usual[0] == f"genssl train --resume {tmp_path}/vae-digits"
    assert "unfinished" in read.text


def test_a_run_that_time_stopped_says_how_far_it_came(tmp_path: Path) -> None:
    run = folder.run(tmp_path / "vae-digits", "vae")
    config = json.loads((run / "config.json").read_text()) | {"epochs": 10}
    metrics = {
        "epoch": 3.43,
        "knn_accuracy": 0.5,
        "knn_accuracy_untrained": 0.25,
        "knn_accuracy_pixels": 0.625,
    }
    folder.run(tmp_path / "vae-old", "vae")
    folder.numbers(run / "config.json", config)
    folder.weights(run / "model.safetensors", config, metrics=metrics)
    folder.evaluation(run, "sample", {"images": 64})
    os.utime(tmp_path / "vae-old" / "model.safetensors", (1e9, 1e9))
    made, read = written(tmp_path)
    assert made.figures[0].source == "run vae-old"  # older, and all its epochs are done
    assert made.figures[3].source == "run vae-digits, stopped by time"
    assert dict(made.figures[3].numbers)["epochs trained"] == "3.43 of 10"
    assert "50.0 % (untrained encoder 25.0 %, raw pixels 62.5 %)" in read.text


def test_the_newest_finished_run_with_the_picture_is_taken(tmp_path: Path) -> None:
    for age, (name, finished) in enumerate([("open", False), ("bare", True), ("new", True), ("old", True)]):
        run = folder.run(tmp_path / name, "vae", finished=finished)
        os.utime(run / "model.safetensors", (1e9 - age, 1e9 - age))
    (tmp_path / "bare" / "wall-clock.png").unlink()
    folder.run(tmp_path / "arms" / "arm", "vae")  # of an ablation: a method's name does not mean it
    shipped = folder.run(tmp_path / "shipped", "vae")
    (shipped / "SHIPPED.txt").write_text("these came with the program\n")
    made, read = written(tmp_path)
    assert [made.figures[place].source for place in (0, 1)] == ["run new", "run bare"]
    assert "these came with the program" in read.text
    for name in ("open", "bare", "new", "old"):
        shutil.rmtree(tmp_path / name)
    assert written(tmp_path)[0].figures[0].shipped == "these came with the program"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"measures": 3, "notes": 4}'])
def test_broken_files_are_named_and_the_page_is_written(tmp_path: Path, content: bytes) -> None:
    run = folder.run(folder.whole(tmp_path) / "vae-digits", "vae")
    names = ["config.json", "environment.json", "history.jsonl", "model.safetensors", "wall-clock.png"]
    names += ["eval/sample.json", "eval/fidelity.json", "eval/ablate.json", "eval/knn-eval.json"]
    for name in names:
        (run / name).write_bytes(content)
    (tmp_path / "ablate-simsiam-digits" / "ablate.json").write_bytes(content)
    (tmp_path / "about.json").write_bytes(content)
    made, read = written(tmp_path)
    broken = ["model.safetensors", *([] if content.startswith(b'{"') else ["eval/sample.json", "about.json"])]
    for name in broken:
        assert any(name in problem for problem in made.problems), name
        assert name in read.text
    assert made.figures[6].picture is not None


@pytest.mark.parametrize("cut", [0, 20, -5])
def test_a_picture_that_was_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    run = folder.run(tmp_path / "vae-digits", "vae")
    file = run / "wall-clock.png"
    file.write_bytes(file.read_bytes()[:cut])
    made, _ = written(tmp_path)
    assert made.problems == [f"{file} is no picture that can be read"]
    assert made.figures[0].picture is None


def test_numbers_of_other_weights_are_marked(tmp_path: Path) -> None:
    run = folder.run(tmp_path / "vae-digits", "vae")
    folder.evaluation(run, "sample", {"images": 64, "epoch": 2, "weights_sha256": "e" * 64})
    made, _ = written(tmp_path)
    assert "other weights" in made.figures[3].notes[0]
    folder.evaluation(run, "sample", {"images": 64, "epoch": 3})
    assert written(tmp_path)[0].figures[3].notes == []


def test_data_at_a_path_are_named_by_their_file(tmp_path: Path) -> None:
    """Whatever the file is called: nothing is known of it but its name."""
    folder.run(tmp_path / "vae", "vae", data="../data/svhn-images.tar.gz")
    folder.run(tmp_path / "simsiam", "simsiam", data="cifar10")
    made, read = written(tmp_path)
    assert "data svhn-images epochs" in read.text
    assert "data cifar10 epochs" in read.text
    assert "../data" not in read.text
    assert "official" not in made.path.read_text()


def test_a_figure_takes_the_newest_picture_of_its_evaluation(tmp_path: Path) -> None:
    run = folder.run(tmp_path / "vae", "vae")
    for age, name in enumerate(["sample-n16-ancestral", "sample", "sample-n4"]):
        folder.evaluation(run, name, {"images": 10 + age})
        os.utime(run / "eval" / f"{name}.png", (1e9 - age, 1e9 - age))
    folder.picture(run / "eval" / "sample-trajectory.png")  # newer, and no evaluation
    made, read = written(tmp_path)
    assert made.figures[3].command == "genssl sample-n16-ancestral this"
    assert dict(made.figures[3].numbers)["images"] == "10"
    for other in ("vae-sample", "vae-sample-n4"):  # shown among the others
        assert other in {each.get("id") for each in read.all("article")}
    assert [image["alt"] for image in read.all("img") if "trajectory" in str(image["alt"])] == [
        "Sample, trajectory, of the run vae"
    ]


def test_many_runs_make_a_page_of_a_bearable_size(tmp_path: Path) -> None:
    for place in range(30):
        folder.run(tmp_path / f"run-{place}", "byol")
    made, read = written(tmp_path)
    assert len(made.runs) == 30
    assert made.size < 1_000_000
    assert all(f"run-{place}" in read.words for place in range(30))


def test_a_page_is_written_without_torch(tmp_path: Path) -> None:
    folder.whole(tmp_path)
    code = (
        "import sys; from genssl.cli import app; from typer.testing import CliRunner; "
        "done = CliRunner().invoke(app, ['report', sys.argv[1], '--json']); "
        "print(done.exit_code, 'torch' in sys.modules)"
    )
    line = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.split() == ["0", "False"]


@pytest.mark.slow
def test_a_browser_lays_the_page_out(tmp_path: Path) -> None:
    """The browser's own tree of the page holds all figures, decoded; nothing is wider than a phone.

    Tables scroll in boxes of their own on a phone, and need not scroll where there are 1280 pixels.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no browser is installed")
    more = ("kernel_distance", "recall", "coverage", "authenticity", "sharpness")
    measures = [*folder.MEASURES, *({**folder.MEASURES[1], "measure": name} for name in more)]
    run = folder.whole(tmp_path) / "ddpm-digits"
    way = {"sampler": "ddim", "eta": 0.5, "nfe": 50, "seconds": 75.0}
    folder.evaluation(run, "fidelity", {"samples": 512, "measures": measures, "sampling": way})
    made, _ = written(tmp_path)
    probe = tmp_path / "probe.html"  # the page itself lets no script run
    look = (
        "<script>onload = () => { const body = document.body, images = [...document.images];"
        "const boxes = [...document.querySelectorAll('.scroll')];"
        "const scrolling = () => boxes.filter(box => box.scrollWidth > box.clientWidth).length;"
        "body.style.width = '1280px'; const wide = scrolling();"
        "body.style.width = '320px';"
        "body.dataset.found = [body.scrollWidth <= 320, images.length,"
        "images.every(image => image.naturalWidth > 0), wide, scrolling() > 0].join(' ') }</script>"
    )
    html = made.path.read_text(encoding="utf-8").replace("default-src 'none'", "script-src 'unsafe-inline'")
    probe.write_text(html.replace("</body>", f"{look}</body>"), encoding="utf-8")
    line = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    line += ["--window-size=1300,800", "--dump-dom", probe.as_uri()]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True).stdout
    [body] = Reader(shown.replace("<!DOCTYPE html>", "")).all("body")
    assert body["data-found"] == f"true {json.dumps(shown.count('<img '))} true 0 true"
