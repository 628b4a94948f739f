"""The folder that ``flwr run`` is given."""

from __future__ import annotations

from pathlib import Path


def app_folder() -> Path:
    """The folder of our Flower app: its ``pyproject.toml`` holds ``[tool.flwr.app]``, beside it lies the licence that Flower asks for.

    In a checkout this is the repository, as for ``flwr run .``: Flower bundles the packages and runs the copy. In a wheel the two files
    lie in ``experiments/launch/app`` (``force-include`` in pyproject.toml), because site-packages must not get a ``pyproject.toml``. The
    bundle is then these two files, and Flower imports the installed packages.
    """
    here = Path(__file__).resolve().parent
    packaged = here / "app"
    return packaged if packaged.is_dir() else here.parent.parent
