"""What papers published: published.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

NUMBERS = Path(__file__).parent / "published.json"


@cache
def published_numbers() -> Mapping[str, Any]:
    """Every entry of published.json (a process-wide constant): its source, what was measured, and accuracies (percent) by the labels of
    a study's axes."""
    return json.loads(NUMBERS.read_text(encoding="utf-8"))
