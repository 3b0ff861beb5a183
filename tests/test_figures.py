from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from genssl import figures, files
from genssl.data.split import Split
from genssl.eval.features import draw_components

from .narrow import given


def test_grid_puts_image_i_at_row_and_column() -> None:
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 3, 4, 5) * 10
    sheet = np.asarray(figures.grid(images, columns=3))
    assert sheet.shape == (3 * (4 + 2) + 2, 3 * (5 + 2) + 2, 3)
    for place in range(7):
        top, left = 2 + place // 3 * 6, 2 + place % 3 * 7
        assert (sheet[top : top + 4, left : left + 5] == place * 10).all()
    assert (sheet[14:18, 9:] == 255).all()  # the empty places of the last row
    assert (sheet[:2] == 255).all()


def test_grid_of_floats_goes_through_the_converter() -> None:
    images = torch.tensor([-1.0, 0.0, 0.999]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    assert np.asarray(figures.grid(images, columns=3))[2, 2::3, 0].tolist() == [0, 128, 255]


def test_grid_scales_without_smoothing() -> None:
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    once, thrice = np.asarray(figures.grid(images)), np.asarray(figures.grid(images, scale=3))
    assert (thrice[1::3, 1::3] == once).all()


def test_contact_sheet_shows_every_picture() -> None:
    pages = [(f"epoch {k}", Image.new("RGB", (20, 10), (k, 0, 0))) for k in range(5)]
    sheet = np.asarray(figures.contact_sheet(pages, columns=2))
    assert {0, 1, 2, 3, 4} <= set(sheet[..., 0][sheet[..., 1] == 0].tolist())


def byte_images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 255, (count, 3, size, size), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_a_titled_grid_is_four_times_as_large_below_its_header_and_titles() -> None:
    images = byte_images(64)
    bare = figures.titled_grid(images, "a header")
    titled = figures.titled_grid(images, "a header", titles=("original", "reconstruction"))
    native = np.asarray(figures.grid(images))
    top = int(bare.info["grid_top"])
    assert bare.width == 4 * native.shape[1]
    assert (np.asarray(bare)[top:][1::4, 1::4] == native).all()
    assert (np.asarray(bare)[:top] < 128).any()  # letters
    assert titled.height - bare.height == figures.TITLE_HEIGHT
    line = np.asarray(titled)[top : top + figures.TITLE_HEIGHT, :, 0]
    assert all((line[:, i * 136 : (i + 1) * 136] < 128).any() for i in range(8))  # one title per column


def test_a_header_is_wrapped_at_spaces_and_large_grids_stay_small_files() -> None:
    header = "vae on synthetic, epoch 12: 2 samples, mixture prior, drawn by the random seed 0 " * 2
    narrow = figures.titled_grid(byte_images(2), header, columns=1)
    assert narrow.width == figures.LEAST_WIDTH
    assert int(narrow.info["grid_top"]) > 2 * figures.LINE_HEIGHT
    many = figures.titled_grid(byte_images(1000), "a header", titles=("far too long for an image",))
    assert max(many.size) < figures.LARGEST + 100
    assert many.info["grid_top"] == str(figures.MARGIN + figures.LINE_HEIGHT)


def test_a_contact_sheet_leaves_out_the_headers_of_its_pages(tmp_path: Path) -> None:
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    files.write_picture(tmp_path / "page.png", figures.titled_grid(images, "vae on svhn, epoch 1"))
    with Image.open(tmp_path / "page.png") as opened:
        page = opened.convert("RGB")
    assert page.info["Description"] == "vae on svhn, epoch 1"
    sheet = figures.contact_sheet([("epoch 1", page)], header="vae on svhn: samples while training")
    halved = 2 * (2 * (32 + 2) + 2)
    assert sheet.width == figures.LEAST_WIDTH // 2 + 8
    assert sheet.height < halved + 60
    dark = (np.asarray(sheet)[..., 0] < 64).sum(0)
    assert (dark[80:130] >= 2 * 64).all()  # columns of the second image, at half of its magnified size


def test_one_image_keeps_its_pixels() -> None:
    image = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    assert (np.asarray(figures.one(image)) == image.permute(1, 2, 0).numpy()).all()


def test_curves_pair_train_and_test_and_skip_what_is_missing() -> None:
    history: list[dict[str, Any]] = [
        {"epoch": 1, "step": 2, "loss": 3.0, "seconds": 1.0},
        {"epoch": 2, "step": 4, "loss": None, "test_loss": 2.5, "seconds": 2.0},
        {"epoch": 3, "step": 6, "loss": 1.0, "test_loss": 1.5, "seconds": 3.0},
    ]
    figure = figures.curves(history, "a run")
    assert isinstance(figure, Figure)
    (panel,) = [axis for axis in figure.axes if axis.get_visible()]
    train, test = panel.get_lines()
    assert np.asarray(train.get_xdata()).tolist() == [1, 3]
    assert np.asarray(test.get_ydata()).tolist() == [2.5, 1.5]


def test_curves_name_the_validation_split() -> None:
    record = {"epoch": 1, "loss": 3.0, "validation_loss": 2.5, "validation_kl": 1.0, "rankme": 4.0}
    figure = figures.curves([{**record, "split": "validation"}], "a run", {"kl": "nats"})
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    assert list(panels) == ["loss", "validation kl", "rankme (validation)"]
    assert [text.get_text() for text in given(panels["loss"].get_legend()).get_texts()] == [
        "train",
        "validation",
    ]
    assert panels["validation kl"].get_ylabel() == "nats"


def test_curves_have_units_and_shade_collapsed_epochs_instead_of_drawing_them() -> None:
    flat = {"seconds": 1.0, "output_std": 0.01, "knn_accuracy": 0.25, "test_loss": 2.0, "learning_rate": 0.1}
    history = [{"epoch": k, "loss": 3.0, "kl": 1.0, "collapsed": k > 1, **flat} for k in (1, 2, 3)]
    figure = figures.curves(history, "a run", {"loss": "nats per image"})
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    assert list(panels) == ["loss", "kl", "output std", "knn accuracy"]
    assert all(axis.get_xlabel() == "epoch" for axis in panels.values())
    assert [axis.get_ylabel() for axis in panels.values()] == [
        "nats per image", "kl", "1: spread out, 0: collapsed", "accuracy (%)"
    ]  # fmt: skip
    assert panels["knn accuracy"].yaxis.get_major_formatter()(0.25, None) == "25"
    assert [len(axis.patches) for axis in panels.values()] == [2] * 4
    assert "collapsed" in figure.get_suptitle()
    assert not figures.curves([{**history[0]}], "a run").axes[0].patches


def test_wall_clock_is_cumulative_and_chooses_its_unit() -> None:
    history = [{"epoch": k, "seconds": 100.0 * k} for k in (1, 2, 6)]
    (axis,) = figures.wall_clock(history, "a run").axes
    assert np.asarray(axis.get_lines()[0].get_ydata()).tolist() == [100 / 60, 200 / 60, 10]
    assert "minutes" in axis.get_ylabel()


def test_names_without_a_font_are_replaced_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    figures.drawn_names.cache_clear()
    with pytest.warns(UserWarning, match="no installed font has the letters of \u732b"):
        drawn = figures.drawn_names(("dog", "\u732b", "_background_"))
    assert drawn.names == ("dog", "class 1", " _background_")
    assert drawn.font(12).getlength(drawn.names[1]) > 0
    figures.drawn_names.cache_clear()


def test_a_font_that_has_the_letters_is_looked_for() -> None:
    assert figures.drawn_names(("caf\u00e9", "Z\u00fcrich")).file is None
    drawn = figures.drawn_names(("\u043a\u043e\u0442", "\u03b1\u03b2\u03b3"))
    assert drawn.names == ("\u043a\u043e\u0442", "\u03b1\u03b2\u03b3")
    assert drawn.file is not None
    assert drawn.file.endswith("DejaVuSans.ttf")


def test_a_legend_names_classes_with_an_underscore() -> None:
    split = Split(torch.zeros(4, 3, 2, 2), torch.arange(4) % 2, ("_background_", "cat"), "a", "test", "d")
    figure = draw_components(torch.randn(4, 2), torch.tensor([0.5, 0.2]), split)
    assert [text.get_text().strip() for text in given(figure.axes[0].get_legend()).texts] == [
        "_background_",
        "cat",
    ]
