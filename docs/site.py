"""What the documentation site changes in the pages, which are also read as plain files."""

import re
from typing import Any

# Files of the program, which the site does not have: the link's text stays
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leave out links to files outside of docs/."""
    return OUTSIDE.sub(r"\1", markdown)
