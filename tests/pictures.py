"""The grids in pictures that `figures.titled_grid` made."""

import numpy as np
import torch
from PIL import Image

from genssl import figures


def native_grid(picture: Image.Image, rows: int, columns: int, side: int = 32) -> np.ndarray:
    """The grid of images as `figures.grid` has it, (H, W, 3), without what is above it."""
    scale = figures.magnification(torch.empty(rows * columns, 3, side, side), columns)
    pitch = side + figures.PADDING
    width, height = (scale * (count * pitch + figures.PADDING) for count in (columns, rows))
    assert picture.width == max(width, figures.LEAST_WIDTH)
    above = picture.height - height - int(picture.info["grid_top"])
    assert above in (0, figures.TITLE_HEIGHT)
    pixels: np.ndarray = np.asarray(picture)[-height::scale, :width:scale]
    return pixels
