"""How an image of any shape becomes a square."""

from dataclasses import dataclass
from typing import get_args

from PIL import Image

from genssl.data.registry import Shape
from genssl.errors import UserError


@dataclass
class Fit:
    """Makes squares of images, and counts those of which cropping leaves much out.

    Attributes:
        size: pixels on a side.
        shape: crop cuts out the center square, pad lays the whole image on white, stretch changes its shape.
        images: how many were fitted.
        cropped: of how many more than a third of the area was cut off.
        resampling: bicubic for colors; nearest for numbers of classes, which have no mean.
    """

    size: int
    shape: Shape = "crop"
    images: int = 0
    cropped: int = 0
    resampling: Image.Resampling = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise UserError(f"no way to fit images is called {self.shape!r}; use crop, pad or stretch")

    def __call__(self, image: Image.Image) -> Image.Image:
        """The square, resized with antialiasing; one of the right size keeps its pixels bit for bit."""
        short, long = sorted(image.size)
        self.images += 1
        self.cropped += self.shape == "crop" and 3 * short < 2 * long
        if self.shape == "pad" and short < long:
            scale = self.size / long
            width, height = (max(1, round(scale * side)) for side in image.size)
            square = Image.new(image.mode, (self.size, self.size), "white")
            offset = (self.size - width) // 2, (self.size - height) // 2
            square.paste(image.resize((width, height), self.resampling), offset)
            return square
        if self.shape == "crop" and short < long:
            left, top = (image.width - short) // 2, (image.height - short) // 2
            image = image.crop((left, top, left + short, top + short))
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), self.resampling)

    def notice(self) -> str | None:
        """What cropping left out, for the user; None: never more than a third."""
        if not self.cropped:
            return None
        return (
            f"the center square leaves out more than a third of {self.cropped:,} of {self.images:,} images; "
            "training with --fit pad or --fit stretch shows the whole of them"
        )
