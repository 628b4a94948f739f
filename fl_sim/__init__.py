"""fl-sim: poisoned federated learning, simulated on Flower, Ray and PyTorch.

The API for Python: `run`, `sweep`, `open_study`, `compare`, `load_model`, `resolve`, `Config`; what attacks and rules are written with:
`Action`, `Aim`, `AttackState`, `Clip`, `Knowledge`, `Rule`; and `memorization_discrepancy`. They are loaded from `experiments.api` on first
use, so that the packages above this one may import it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.api import (
        Action as Action,
    )
    from experiments.api import (
        Aim as Aim,
    )
    from experiments.api import (
        AttackState as AttackState,
    )
    from experiments.api import (
        Clip as Clip,
    )
    from experiments.api import (
        Config as Config,
    )
    from experiments.api import (
        Knowledge as Knowledge,
    )
    from experiments.api import (
        Rule as Rule,
    )
    from experiments.api import (
        compare as compare,
    )
    from experiments.api import (
        load_model as load_model,
    )
    from experiments.api import (
        memorization_discrepancy as memorization_discrepancy,
    )
    from experiments.api import (
        open_study as open_study,
    )
    from experiments.api import (
        resolve as resolve,
    )
    from experiments.api import (
        run as run,
    )
    from experiments.api import (
        sweep as sweep,
    )

__all__ = [
    "Action", "Aim", "AttackState", "Clip", "Config", "Knowledge", "Rule", "compare", "load_model", "memorization_discrepancy",
    "open_study", "resolve", "run", "sweep",
]  # fmt: skip

ROOT = Path(__file__).resolve().parent.parent


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fl_sim' has no attribute {name!r}")
    return getattr(_api(), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _api() -> Any:
    """Our `experiments.api`, also if the working directory has a folder `experiments` of its own.

    Raises ImportError if another package of that name was imported before.
    """
    other = sys.modules.get("experiments")
    if other is not None and Path(other.__path__[0]).resolve() != ROOT / "experiments":
        raise ImportError(
            f"another package 'experiments' was imported before fl_sim ({next(iter(other.__path__))}); fl_sim has one of that name "
            f"({ROOT / 'experiments'}): use fl_sim before you import yours (from fl_sim import run), or rename yours"
        )
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("experiments.api")
    finally:
        sys.path.remove(str(ROOT))
