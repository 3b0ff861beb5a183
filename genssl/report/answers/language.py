"""Numbers and sentences of the assignment's report, in English or French."""

from dataclasses import dataclass
from typing import Any, Literal

from genssl.report import format
from genssl.report.answers.french import FRENCH

Code = Literal["en", "fr"]
THIN = "\u202f"  # what separates thousands, and stands before a percent sign, in French
DECIMAL_COMMA = str.maketrans({".": ",", ",": THIN})


@dataclass(frozen=True)
class Language:
    """What a report is written in.

    Attributes:
        code: "en" or "fr".
    """

    code: Code = "en"

    def choose(self, english: str, french: str) -> str:
        """The text of this language."""
        return french if self.code == "fr" else english

    def words(self, english: str) -> str:
        """A heading or label; as it is where there is no translation."""
        return FRENCH.get(english, english) if self.code == "fr" else english

    def number(self, value: Any, digits: int = 3) -> str:
        """A number; whole ones with separators of thousands."""
        return self._signs(format.number(value, digits))

    def percent(self, share: Any) -> str:
        """A share from 0 to 1, in percent."""
        return self._signs(format.percent(share))

    def points(self, difference: float) -> str:
        """A difference of two shares, in percentage points without a sign."""
        text = self._signs(f"{abs(100 * difference):.1f}")
        return text + self.choose(" points", " points")

    def seconds(self, value: Any) -> str:
        """A time."""
        return self._signs(format.seconds(value))

    def times(self, ratio: float) -> str:
        """A ratio, e.g. 2.1 times."""
        return f"{self.number(ratio, 2)} {self.choose('times', 'fois')}"

    def interval(self, low: Any, high: Any, digits: int = 3) -> str:
        """Both ends of a 95 % interval, in parentheses."""
        return f"({self.number(low, digits)} {self.choose('to', 'à')} {self.number(high, digits)})"

    def listed(self, items: list[str]) -> str:
        """Items with commas and an "and"."""
        if len(items) < 2:
            return "".join(items)
        return f"{', '.join(items[:-1])} {self.choose('and', 'et')} {items[-1]}"

    def _signs(self, text: str) -> str:
        if self.code == "en":
            return text
        return text.translate(DECIMAL_COMMA).replace(" %", f"{THIN}%")
