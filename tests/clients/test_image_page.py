"""The attack of the page on images runs as printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fl_sim.config.keys import Config
from tests.support.pages import examples
from tests.support.runs import lines, run


def test_the_own_attack_of_the_page_moves_its_images(configure: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "own_brighter.py").write_text(examples("image_attacks.md")["own_brighter.py"])
    config = configure(attack__name=f"{tmp_path}/own_brighter.py:brighter", attack__epsilon=0.02, twin=False)
    figures = lines(run(config, tmp_path)[1])[0]["attack"]
    assert figures["image_shift"] == pytest.approx(0.02, abs=1e-6)
    assert figures["images"] == figures["images_corrected"] == 20.0
