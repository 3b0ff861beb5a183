"""The answers to the assignment's questions say what the numbers say."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from genssl import files
from genssl.config import DDPMConfig
from genssl.errors import UserError
from genssl.models.diffusion import linear_schedule
from genssl.report import load, page
from genssl.report.answers.answer import ANSWERS, answer
from genssl.report.answers.facts import Difference, Facts, Share
from genssl.report.answers.language import Language
from genssl.report.answers.questions import NUMBERS, QUESTIONS, select

from . import folder
from .test_page import Reader

Changes = list[tuple[dict[str, Any], dict[str, float]]]
BETTER = {"train": 0.95, "train_low": 0.9, "train_high": 0.99}


def history(run: Path, *records: dict[str, float]) -> None:
    lines = (json.dumps({"epoch": i, "seconds": 10.0 * i, "images_per_second": 40.0, **record})
             for i, record in enumerate(records, 1))  # fmt: skip
    (run / "history.jsonl").write_text("\n".join(lines) + "\n")


def ablation(place: Path, method: str, arms: Changes, collapsed: tuple[int, ...] = ()) -> None:
    rows = [
        {
            "arm": ", ".join(f"{name}={value}" for name, value in changes.items()) or "baseline",
            "changes": changes,
            "runs": [{"run": f"{method}-{i}", "collapsed": i in collapsed, "device": "cpu"}],
            "numbers": {name: {"mean": value, "std": None, "runs": 1} for name, value in numbers.items()},
        }
        for i, (changes, numbers) in enumerate(arms)
    ]
    settings = DDPMConfig().model_dump() if method == "ddpm" else {}
    about = {"method": method, "data": "x/photos.tar", "settings": settings}
    folder.numbers(place / "ablate.json", {**about, "rows": rows})
    folder.picture(place / "ablate.png")


def represents(accuracy: float, **more: float) -> dict[str, float]:
    numbers = {"knn_accuracy_full": accuracy, "linear_test_accuracy": accuracy + 0.05, "test_images": 10_000}
    return {**numbers, "loss": -0.9, "images_per_second": 100.0, "output_std": 0.9, "rankme": 30.0, **more}


def measures(distance: float, recall: float, sharpness: float) -> dict[str, Any]:
    def row(name: str, value: float, half: float, **real: float) -> dict[str, Any]:
        return {"measure": name, "samples": value, "low": value - half, "high": value + half, **real}

    return {
        "samples": 512,
        "measures": [
            row("frechet_distance", distance, 5, train=10.0),
            row("precision", 0.8, 0.05, **BETTER),
            row("recall", recall, 0.05, **BETTER),
            row("sharpness", sharpness, 10, train=200.0, train_low=180.0, train_high=220.0),
        ],
    }


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Something measured for every question."""
    vae, ddpm = folder.run(tmp_path / "vae", "vae"), folder.run(tmp_path / "ddpm", "ddpm")
    simsiam = folder.run(tmp_path / "simsiam", "simsiam")
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**config, "z_dim": 32}))
    generative = [
        {"loss": v, "test_loss": v, "test_kl": 64.0, "nll": v, "test_nll": v + 3} for v in (9, 4, 3, 2)
    ]
    for run in (vae, ddpm):
        history(run, *generative)
    history(simsiam, {"loss": -0.5}, {"loss": -0.9})
    evaluations: dict[Path, dict[str, dict[str, Any]]] = {
        vae: {
            "importance-ll": {"log_p_nats": 1843.0, "elbo_nats": 1778.0, "gap_to_elbo_nats": 65.0, "k": 100,
                              "images": 50, "effective_sample_size_median": 1.5},
            "reconstruct": {"psnr_db": 25.9, "images": 50},
            "latent-profile": {"most_discriminative_dims": [27, 3], "their_separation": [0.0329, 0.01],
                               "active_units": 32, "z_dim": 32,
                               "largest_peak_by_class": {"9": {"dimension": 20, "mean": -0.92}}},
            "interpolate": {"largest_to_mean_step": 1.2},
            "fidelity": measures(100.0, 0.4, 60.0),
        },
        ddpm: {
            "bits-per-dim": {"bits_per_dim": 2.69, "standard_error": 0.01, "images": 50,
                             "denoising_bits_per_dim": 1.0,
                             "denoising_bits_per_dim_by_t": {"2-100": 0.9, "101-1000": 0.1}},
            "noise-levels": {"t_star_pixels": {"level": 461.0, "low": 449.0, "high": 472.0},
                             "t_star_features": {"level": None, "low": None, "high": None},
                             "levels": [{"t_prime": 16, "psnr_db": 39.0}, {"t_prime": 256, "psnr_db": 20.0}]},
            "fidelity": measures(40.0, 0.7, 205.0),
            "probe": {"test_images": 2000, "compared": [
                {"what": what, "fraction": 1.0, "labeled": 500, "linear_accuracy": value}
                for what, value in (("ddpm", 0.4), ("untrained ddpm", 0.2), ("raw pixels", 0.3))]},
        },
    }  # fmt: skip
    for run, named in evaluations.items():
        for name, values in named.items():
            folder.evaluation(run, name, values)
    base = represents(0.5)
    steps = {"images_per_second": 100.0, "ancestral_seconds": 10.0}
    studies: dict[str, tuple[str, Changes]] = {
        "a": ("simsiam", [({}, base), ({"stop_gradient": False}, represents(0.2, loss=-1.0))]),
        "b": ("simsiam", [({}, base), ({"predictor": "identity"}, represents(0.25, loss=-1.0))]),
        "c": ("simsiam", [({}, base), ({"projector_dim": 4096}, represents(0.501))]),
        "d": ("barlow_twins", [({}, base), ({"projector_dim": 4096}, represents(0.45))]),
        "e": ("dssl", [({}, base), ({"naive": True}, represents(0.4)),
                       ({"heavy_operations": 6}, represents(0.45)),
                       ({"naive": True, "heavy_operations": 6}, represents(0.3))]),
        "f": ("vicreg", [({}, represents(0.5, output_scale=1.0)),
                         ({"variance": 0}, represents(0.3, output_scale=0.01)),
                         ({"covariance": 0}, represents(0.4, rankme=3.0)),
                         ({"variance": 0, "covariance": 0}, represents(0.2))]),
        "g": ("ddpm", [({}, steps), ({"timesteps": 500}, {**steps, "ancestral_seconds": 5.0}),
                       ({"timesteps": 1500}, {**steps, "ancestral_seconds": 15.0})]),
    }  # fmt: skip
    for name, (method, arms) in studies.items():
        ablation(tmp_path / name, method, arms, collapsed=(1,) if name == "a" else ())
    sides = [{"name": method, "method": method, "numbers": represents(value, images_per_second=speed)}
             for method, value, speed in (("byol", 0.52, 70.0), ("simsiam", 0.5, 100.0))]  # fmt: skip
    folder.numbers(tmp_path / "h" / "compare.json", {"runs": sides})
    fidelity = [
        {"run": f"ddpm-{i}", **measures(value, 0.5, 200.0)} for i, value in enumerate((40.0, 90.0, 41.0))
    ]
    runs = [{"name": f"ddpm-{i}", "method": "ddpm", "numbers": {}} for i in range(3)]
    folder.numbers(tmp_path / "i" / "compare.json", {"runs": runs, "fidelity": fidelity})
    return tmp_path


def text_of(place: Path, number: str, code: Any = "en") -> str:
    facts = Facts(load.gather([str(place)]))
    question = next(question for question in QUESTIONS if question.number == number)
    sentences = " ".join(answer(question, facts, Language(code)))
    assert facts.contents.problems == []
    return sentences


def test_every_question_is_answered_in_both_languages_with_the_same_numbers(whole: Path) -> None:
    assert tuple(ANSWERS) == NUMBERS

    def numbers(text: str) -> list[float]:
        plain = text.replace("\u202f", "").replace("TWINS", "")
        return [float(number.replace(",", ".")) for number in re.findall(r"\d+(?:[.,]\d+)?", plain)]

    for number in NUMBERS:
        english, french = text_of(whole, number), text_of(whole, number, "fr")
        assert english != french, number
        assert min(len(english), len(french)) > 20, number
        digits = re.sub(r"(?<=\d),(?=\d{3})", "", english)
        assert sorted(numbers(digits)) == sorted(numbers(french)), (number, english, french)


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        ("1.1", ["64 nats", "2 per latent dimension"]),
        ("1.2", ["1843 nats", "exceeds the ELBO by 65", "dominates"]),
        ("1.3 a", ["40 s", "linearly"]),
        ("1.3 b", ["from 9 to 2", "which is where samples change most"]),
        ("1.3 c", ["25.9 dB", "3 nats above"]),
        ("1.3 d", ["100 (95 to 105)", "are at 10", "blurred", "30.0 % of that"]),
        ("1.3 e", ["32 of 32", "3.3 %", "says little", "-0.92"]),
        ("1.3 f", ["no jump"]),
        ("2.1", ["2.69 ± 0.01", "90.0 %", "details"]),
        ("2.2 c", ["t* = 461 (449 to 472)", "not lost up to t' = 256", "from 39 to 20 dB"]),
        ("2.2 d", ["not measurably blurred", "DDPM's samples are nearer", "DDPM's samples are more varied"]),
        ("2.3 a", ["takes about as long as", "step 0.5 times as long", "baseline is best", "500 is last"]),
        ("2.3 b", ["DDPM 40.0 %, raw pixels 30.0 %", "gains 20.0 points"]),
        ("3.4", ["from 50.0 % to 20.0 %", "more than chance", "collapsed", "features are worse"]),
        ("3.5 b", ["+0.1 points, not resolved"]),
        ("3.5 c", ["does not behave the same", "5.1 points"]),
        ("3.6", ["is 40.0 %", "With 6 operations", "+15.0 points", "None of these 4"]),
        ("3.7", ["scale goes from 1 to 0.01", "rank goes from 30 to 3", "Without both"]),
        ("3.8", ["52.0 % for BYOL", "more than chance", "1.4 times as long as SimSiam"]),
        ("3.9", ["-30.0 points and the outputs collapsed", "need 2"]),
    ],
)  # fmt: skip
def test_an_answer_states_the_numbers(whole: Path, number: str, parts: list[str]) -> None:
    text = text_of(whole, number)
    for part in parts:
        assert part in text, text


def test_models_are_ranked_by_samples_that_were_measured_alike(whole: Path) -> None:
    nearer = "DDPM's samples are nearer"
    assert nearer in text_of(whole, "2.2 d")
    for other in ({"samples": 64}, {"features_digest": "pixels"}, {"data_digest": "1"}):
        folder.evaluation(whole / "ddpm", "fidelity", {**measures(40.0, 0.7, 205.0), **other})
        assert "nearer" not in text_of(whole, "2.2 d")
    # A comparison of the two measured both in one way
    sides = [dict[str, Any](name=f"my-{name}", method=name, numbers={}) for name in ("vae", "ddpm")]
    fidelity = [
        {"run": f"my-{name}", **measures(distance, 0.5, 60.0)}
        for name, distance in (("vae", 30.0), ("ddpm", 90.0))
    ]
    folder.numbers(whole / "j" / "compare.json", {"runs": sides, "fidelity": fidelity})
    assert "VAE's samples are nearer to real images than the DDPM's: Frechet distance 30" in text_of(
        whole, "2.2 d"
    )


def test_an_evaluation_on_training_images_or_of_other_weights_answers_nothing(whole: Path) -> None:
    folder.evaluation(whole / "vae", "fidelity-train", {**measures(1.0, 0.4, 60.0), "part": "train"})
    old = {**measures(2.0, 0.4, 60.0), "weights_sha256": "of before"}
    folder.evaluation(whole / "vae", "fidelity-old", old)
    assert "100 (95 to 105)" in text_of(whole, "1.3 d")


def test_the_divergence_is_said_of_the_images_that_it_is_of(whole: Path) -> None:
    records = files.read_records(whole / "vae" / "history.jsonl")
    assert "nats per test image" in text_of(whole, "1.1")
    for name, words in (("validation_", "per validation image"), ("", "per training image")):
        renamed = [
            {
                (name + "kl" if key == "test_kl" else key): value
                for key, value in record.items()
                if key != "kl"
            }
            for record in records
        ]
        (whole / "vae" / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in renamed))
        assert words in text_of(whole, "1.1")


def test_other_numbers_give_another_answer(whole: Path) -> None:
    folder.evaluation(whole / "ddpm", "fidelity", measures(101.0, 0.41, 500.0))
    text = text_of(whole, "2.2 d")
    assert "Which model's samples are nearer to real images is not resolved" in text
    assert "noisier" in text
    assert "2.5 times that" in text
    folder.evaluation(whole / "vae", "interpolate", {"largest_to_mean_step": 3.0})
    assert "the path jumps" in text_of(whole, "1.3 f")
    ablation(whole / "d", "barlow_twins", [({}, represents(0.5)), ({"projector_dim": 4096}, represents(0.5))])
    assert "not told apart" in text_of(whole, "3.5 c")
    ablation(whole / "a", "simsiam", [({}, represents(0.5)), ({"stop_gradient": False}, represents(0.5))])
    ablation(whole / "b", "simsiam", [({}, represents(0.5)), ({"predictor": "identity"}, represents(0.5))])
    assert "need 0" in text_of(whole, "3.9")
    history(whole / "vae", {"test_loss": 1.0}, {"test_loss": 2.0}, {"test_loss": 3.0})
    assert "did not fall" in text_of(whole, "1.3 b")


def test_what_was_not_measured_is_not_answered(tmp_path: Path) -> None:
    folder.run(tmp_path / "byol-photos", "byol")
    assert {number: text_of(tmp_path, number) for number in NUMBERS} == dict.fromkeys(NUMBERS, "")
    page.write(load.gather([str(tmp_path)]), tmp_path / "report.html", "assignment", "fr")
    read = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert read.text.count("Rien n'a encore été mesuré pour cette question.") == len(NUMBERS)


def test_numbers_that_are_none_are_a_problem_of_their_question(whole: Path) -> None:
    folder.evaluation(whole / "ddpm", "noise-levels", {"levels": [{}], "t_star_pixels": {"level": 1.0}})
    contents = load.gather([str(whole)])
    written = page.write(contents, whole / "report.html", "assignment")
    assert any(
        problem.startswith("question 2.2 c: its numbers cannot be used") for problem in written.problems
    )
    answered = [section.question.number for section in written.sections if section.answer]
    assert answered == [number for number in NUMBERS if number != "2.2 c"]


def test_the_page_has_a_section_per_question_with_its_figures(whole: Path) -> None:
    written = page.write(load.gather([str(whole)]), whole / "report.html", "assignment", "fr")
    html = (whole / "report.html").read_text(encoding="utf-8")
    read = Reader(html)
    assert '<html lang="fr">' in html
    anchors = [str(part["id"]) for part in read.all("section") if str(part.get("id")).startswith("question-")]
    assert anchors == [question.anchor for question in QUESTIONS]
    with_pictures = {s.question.number for s in written.sections if any(f.pictures for f in s.figures)}
    assert with_pictures >= {"1.3 a", "2.2 c", "2.3 a", "2.3 b", "3.4", "3.5 c", "3.6", "3.7"}
    for words in ("Sommaire", "précision kNN", "Sans stop-gradient", "Autre figure"):
        assert words in read.text or f'"{words}"' in html
    shutil.rmtree(whole / "f")
    assert (
        "ablate vicreg --set variance=25"
        in Reader(
            page.write(load.gather([str(whole)]), whole / "report.html", "assignment").path.read_text()
        ).text
    )


def test_the_signal_left_is_that_of_the_schedule(whole: Path) -> None:
    share = float(linear_schedule(500, 1e-4, 0.02).alphas_cumprod[-1].sqrt())
    assert f"{100 * share:.1f} % of the signal" in text_of(whole, "2.3 a")


def test_a_difference_is_resolved_by_both_errors() -> None:
    assert Share(0.5, 10_000).error == pytest.approx(0.005)
    assert Share(0.5, 10_000, spread=0.012).error == pytest.approx(0.013)
    limit = 1.96 * 0.005 * math.sqrt(2)
    for difference, resolved in ((1.05 * limit, True), (0.95 * limit, False), (-1.05 * limit, True)):
        between = Difference.between(Share(0.5, 10_000), Share(0.5 + difference, 10_000))
        assert between.is_resolved == resolved


@pytest.mark.parametrize(
    ("only", "skip", "chosen"),
    [
        ([], [], NUMBERS),
        (["2.3b"], [], ("2.3 b",)),
        (["2.3 B", "3.5.c"], [], ("2.3 b", "3.5 c")),
        (["2.3,3.4"], [], ("2.3 a", "2.3 b", "3.4")),
        (["3"], ["3.5", "3.6,3.7"], ("3.1", "3.2", "3.3", "3.4", "3.8", "3.9")),
    ],
)
def test_questions_are_chosen_by_number(only: list[str], skip: list[str], chosen: tuple[str, ...]) -> None:
    assert select(only, skip) == chosen


@pytest.mark.parametrize("text", ["4", "2.3 z", "x", "", "1.1 a", "2.3b,,", "²"])
def test_what_is_no_question_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is no question; there are 1\.1, 1\.2"):
        select([text], [])
    with pytest.raises(UserError, match="leave no question"):
        select(["1.1"], ["1"])
