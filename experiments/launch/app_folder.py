"""The folder of the Flower app, for ``flwr run``."""

from __future__ import annotations

from pathlib import Path


def app_folder() -> Path:
    """The folder of our Flower app, with a ``pyproject.toml`` that holds ``[tool.flwr.app]`` and the licence file that Flower requires.

    In a checkout this is the repository, as for ``flwr run .``: Flower bundles the packages and runs the copy. In a wheel the two files
    are in ``experiments/launch/app`` (``force-include`` in pyproject.toml), because site-packages must not get a ``pyproject.toml``. The
    bundle is then these two files, and Flower imports the installed packages.
    """
    here = Path(__file__).resolve().parent
    folder = here / "app"
    return folder if folder.is_dir() else here.parent.parent
