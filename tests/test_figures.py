import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from genssl import figures


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


def test_one_image_keeps_its_pixels() -> None:
    image = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    assert (np.asarray(figures.one(image)) == image.permute(1, 2, 0).numpy()).all()


def test_curves_pair_train_and_test_and_skip_what_is_missing() -> None:
    history = [
        {"epoch": 1, "step": 2, "loss": 3.0, "seconds": 1.0},
        {"epoch": 2, "step": 4, "loss": None, "test_loss": 2.5, "seconds": 2.0},
        {"epoch": 3, "step": 6, "loss": 1.0, "test_loss": 1.5, "seconds": 3.0},
    ]
    figure = figures.curves(history, "a run")
    assert isinstance(figure, Figure)
    (panel,) = [axis for axis in figure.axes if axis.get_visible()]
    train, test = panel.get_lines()
    assert train.get_xdata().tolist() == [1, 3]
    assert test.get_ydata().tolist() == [2.5, 1.5]


def test_wall_clock_is_cumulative_and_chooses_its_unit() -> None:
    history = [{"epoch": k, "seconds": 100.0 * k} for k in (1, 2, 6)]
    (axis,) = figures.wall_clock(history, "a run").axes
    assert axis.get_lines()[0].get_ydata().tolist() == [100 / 60, 200 / 60, 10]
    assert "minutes" in axis.get_ylabel()
