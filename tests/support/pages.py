"""The pages of the documentation, and the files that they show."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(path for path in ROOT.glob("*.md") if path.name != "README.md"),
]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def text_of(name: str) -> str:
    """The text of a page in `docs/`."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def examples(name: str) -> dict[str, str]:
    """The python blocks of a page that an HTML comment gives a file name, by that name."""
    return dict(re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)```", text_of(name), flags=re.DOTALL))
