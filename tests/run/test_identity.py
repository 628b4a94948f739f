"""What makes two runs one: their keys, and the content of the data, the code and the files that they point at."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fl_sim
from experiments.cli import main
from experiments.records.folder import read_summary
from experiments.records.identity import identity, run_hash, same_keys_other_data
from experiments.run.history import TrackHistory
from experiments.run.shared_twins import twin_key
from experiments.run.track import TrackRun
from experiments.sweep.study import read_study
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.federation import data_fingerprint, read_data
from fl_sim.registry import load_outside, offer, outside_digest
from tests.support.small_data import write_idx
from tests.support.small_run import ALONE, SETTINGS, words

Configure = Callable[..., Config]
FEW: dict[str, Any] = {
    **SETTINGS,
    **ALONE,
    "data.name": "image-folder",
    "attack.set-size": 10,
    "strategy.probe-size": 8,
    "data.num-clients": 6,
}


def easy_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog", "emu")) -> Path:
    """Class k is noise, brighter in the k-th part of the image: 24 + 12 images of 9x6 pixels a class."""
    draws = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 12)):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for row in range(count):
                pixels = draws.integers(0, 60, (9, 6)).astype(np.uint8)
                pixels[3 * number : 3 * number + 3] += 150
                Image.fromarray(pixels).save(root / part / name / f"{row}.png")
    return root


def corrected(root: Path) -> None:
    """The labels of two classes are exchanged."""
    for part in ("train", "test"):
        (root / part / "cat").rename(root / part / "aside")
        (root / part / "dog").rename(root / part / "cat")
        (root / part / "aside").rename(root / part / "dog")


@pytest.mark.slow
def test_a_run_after_a_correction_of_the_data_is_another_run(tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = easy_folder(tmp_path / "a")
    command = [
        "run",
        "digits",
        "--transport",
        "inline",
        "-o",
        str(tmp_path / "runs"),
        *words({**FEW, "data.root": str(root), "data.cache-dir": str(cache_dir)}),
    ]
    assert main(command) == 0
    (first,) = (tmp_path / "runs").iterdir()
    before = (first / "summary.json").read_bytes()
    capsys.readouterr()
    assert main(command) == 0
    assert "already complete" in capsys.readouterr().err
    corrected(root)
    assert main(command) == 0
    said = capsys.readouterr().err
    (second,) = set((tmp_path / "runs").iterdir()) - {first}
    digests = [json.loads((folder / "meta.json").read_text())["data"]["fingerprint"] for folder in (first, second)]
    assert digests[0] != digests[1]
    assert "already complete" not in said
    assert f"{second.name} is a new run: {first} has the same keys, but its data was other" in said.replace("\n", " ")
    assert f"(fingerprint {digests[0][:16]} there, {digests[1][:16]} here)" in said.replace("\n", " ")
    assert (first / "summary.json").read_bytes() == before, "the old one stays"
    assert read_summary(second)["config_hash"] == second.name.rpartition("-")[2]
    told_apart = read_study(tmp_path / "runs")
    assert [set(cell.labels) for cell in told_apart.cells] == [{"data (fingerprint)"}] * 2
    assert {cell.labels["data (fingerprint)"] for cell in told_apart.cells} == {digest[:16] for digest in digests}


def test_the_same_data_elsewhere_is_the_same_run(configure: Configure, tmp_path: Path) -> None:
    root = easy_folder(tmp_path / "a")
    shutil.copytree(root, tmp_path / "b")
    one, other = (configure(data__name="image-folder", data__root=str(tmp_path / name), attack__set_size=10) for name in "ab")
    assert run_hash(one) == run_hash(other)
    assert str(tmp_path) not in str(identity(one))


def test_an_axis_of_data_roots(configure: Configure, tmp_path: Path, cache_dir: Path) -> None:
    roots = [str(easy_folder(tmp_path / "a")), str(easy_folder(tmp_path / "b", ("cat", "dog", "yak"))), str(easy_folder(tmp_path / "c"))]
    corrected(Path(roots[1].replace("/b", "/c")))
    keys = {**FEW, "data.cache-dir": str(cache_dir)}

    def sweep(*places: str) -> Any:
        return fl_sim.sweep({"name": "roots", "set": keys, "axes": {"data.root": list(places)}}, output_dir=tmp_path, progress=False)

    with pytest.raises(ConfigError, match="hold the same data"):
        sweep(roots[0], roots[1])  # other names, the same pixels and labels
    study = sweep(roots[0], roots[2])
    frame = study.frame()
    assert len({run.folder for run in study.runs}) == 2
    assert frame["data.root"].tolist() == [roots[0], roots[2]]


def test_public_data_sets_by_their_content(configure: Configure, tmp_path: Path) -> None:
    """The file of labels reversed is another run, of the run and of its twin; another folder is not."""
    for name in ("a", "b", "c"):
        write_idx(tmp_path / name, "FashionMNIST")
    path = tmp_path / "c" / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:8] + bytes(9 - label for label in content[8:]))
    configs = [
        configure(
            data__name="fashion-mnist", data__root=str(tmp_path / name), data__num_clients=2, attack__set_size=2, strategy__probe_size=1
        )
        for name in ("a", "b", "c")
    ]
    hashes = [run_hash(config) for config in configs]
    assert hashes[0] == hashes[1] != hashes[2]
    twins = [twin_key(config, TrackHistory()) for config in configs]
    assert twins[0] == twins[1] != twins[2]


def test_a_checkpoint_of_other_data_is_not_used(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = easy_folder(tmp_path / "a")
    settings = {**FEW, "data.root": str(root), "data.cache-dir": str(cache_dir), "checkpoint.every": 1}
    command = ["run", "digits", "--transport", "inline", "-o", str(tmp_path / "runs"), *words(settings)]
    play = TrackRun.play

    def stopping(self: TrackRun) -> Any:
        for line in play(self):
            yield line
            if line["round"] == 2:
                raise RuntimeError("the power fails")

    monkeypatch.setattr(TrackRun, "play", stopping)
    assert main(command) == 1
    monkeypatch.setattr(TrackRun, "play", play)
    corrected(root)
    assert main([*command, "--resume"]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "is a checkpoint of another configuration: data (fingerprint) = " in said
    assert main(command) == 0
    assert "goes on after round" not in capsys.readouterr().err


def test_changed_rows_and_files_of_indices(configure: Configure, tmp_path: Path) -> None:
    table, shares = tmp_path / "all.csv", tmp_path / "shares.json"
    hashes = list[str]()
    for last, first in ((0, 0), (1, 0), (1, 1)):
        table.write_text("x,label\n" + "".join(f"{row},{row % 2}\n" for row in range(40)) + f"7,{last}\n")
        shares.write_text(json.dumps([[first + 2 * row] for row in range(6)]))
        config = configure(
            data__name="table",
            data__root=str(table),
            data__partition=str(shares),
            data__num_clients=6,
            attack__set_size=0,
            attack__data="members",
            strategy__probe_size=2,
        )
        read_data(config, lambda *_: None)
        hashes.append(run_hash(config))
    assert len(set(hashes)) == 3


def test_meta_says_what_the_data_was(configure: Configure, tmp_path: Path, cache_dir: Path) -> None:
    root = easy_folder(tmp_path / "a")
    (root / "train" / "cat" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"left out 1 files of other types \(1 \.txt\)"):
        run = fl_sim.run("digits", {**FEW, "data.root": str(root), "data.cache-dir": str(cache_dir)}, output_dir=tmp_path, progress=False)
    data = json.loads((run.folder / "meta.json").read_text())["data"]
    assert data.pop("fingerprint") == data_fingerprint(run.config)
    (note,) = data.pop("notes")
    assert "1 .txt" in note
    assert data == {"train": 72, "test": 36, "classes": 3, "shape": [3, 9, 6]}
    assert same_keys_other_data([run.folder], [run.config]) == []


# Code from outside.


def edited(path: Path, text: str) -> None:
    """In the same second, with the same size: Python's own cache of bytecode would not notice."""
    before = path.stat() if path.exists() else None
    path.write_text(text)
    if before:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_and_what_it_imports_are_loaded_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "own_helpers").mkdir()
    edited(tmp_path / "own_helpers" / "__init__.py", "")
    edited(tmp_path / "own_helpers" / "deep.py", "VALUE = 1\n")
    edited(tmp_path / "own_helpers" / "near.py", "from .deep import VALUE\nFACTOR = 10\n")
    edited(tmp_path / "own_rule.py", "import numpy\nfrom own_helpers import near\ndef rule():\n    return near.VALUE * near.FACTOR + 1\n")
    edited(tmp_path / "own_other.py", "def other():\n    return 0\n")
    seen = dict[str, int]()
    for change, expected in (
        (lambda: None, 11),
        (lambda: edited(tmp_path / "own_helpers" / "deep.py", "VALUE = 2\n"), 21),
        (lambda: edited(tmp_path / "own_helpers" / "near.py", "from .deep import VALUE\nFACTOR = 30\n"), 61),
        (
            lambda: edited(
                tmp_path / "own_rule.py",
                "import numpy\nfrom own_helpers import near\ndef rule():\n    return near.VALUE * near.FACTOR + 2\n",
            ),
            62,
        ),
        (lambda: edited(tmp_path / "own_other.py", "def other():\n    return 1\n"), 62),
    ):
        change()
        for name in (f"{tmp_path / 'own_rule.py'}:rule", "own_rule:rule"):
            assert load_outside(name)() == expected, name
            seen[outside_digest(name)] = expected
    assert sorted(seen.values()) == [11, 21, 61, 62], "a digest for each content; what it does not import does not count"


def test_a_digest_without_imports_of_its_own_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text("import torch, numpy.linalg\nfrom fl_sim import Action\nimport not_there\ndef thing(): ...\n")
    assert outside_digest(f"{tmp_path / 'alone.py'}:thing") == hashlib.sha256((tmp_path / "alone.py").read_bytes()).hexdigest()[:16]


SCALE = 1.0


def scaled(updates: Any, weights: Any) -> Any:
    return SCALE * updates.mean(dim=0)


class Holder:
    def __init__(self, values: Any) -> None:
        self.values = values

    def __call__(self, updates: Any, weights: Any) -> Any:
        return updates.mean(dim=0)


def test_an_object_is_named_by_all_of_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """`repr` shortens large arrays and tensors."""
    names = set[str]()
    for kind in (np.zeros(5000), torch.zeros(5000), np.zeros((2, 3000), np.int8), [torch.zeros(2000)], {"a": np.zeros(2000)}):
        names.add(offer(Holder(kind)))
        inner: Any = kind[0] if isinstance(kind, list) else kind["a"] if isinstance(kind, dict) else kind
        inner.reshape(-1)[1500] = 1
        names.add(offer(Holder(kind)))
        assert offer(Holder(kind)) in names
    assert len(names) == 10
    before = offer(scaled)
    assert offer(scaled) == before
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert offer(scaled) != before, "a global that it uses"


NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.last = nn.Linear(64, classes)
    def forward(self, x):
        return self.last({factor} * x.flatten(1))
"""


@pytest.mark.slow
def test_a_worker_builds_its_model_anew_when_its_code_changes(tmp_path: Path, cache_dir: Path) -> None:
    """The second run of this process gives what the only run of another process gives."""
    net, norms = tmp_path / "net.py", list[list[float]]()
    settings = {**SETTINGS, **ALONE, "model.name": f"{net}:Net", "data.cache-dir": str(cache_dir)}
    for factor in ("1.0", "0.1"):
        edited(net, NET.format(factor=factor))
        norms.append(list(fl_sim.run("digits", settings, output_dir=tmp_path / "runs", progress=False).rounds["honest_norm"]))
    shutil.move(tmp_path / "runs", tmp_path / "before")
    code = "import fl_sim, json, sys; run = fl_sim.run('digits', json.loads(sys.argv[1]), output_dir=sys.argv[2], progress=False)"
    words = [sys.executable, "-c", f"{code}; print(list(run.rounds['honest_norm']))", json.dumps(settings), str(tmp_path / "runs")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == norms[1] != norms[0]
