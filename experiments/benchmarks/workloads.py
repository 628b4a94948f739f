"""The workloads of the benchmarks, their synthetic data, and their configuration as flat keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

TEST_EXAMPLES = 264  # 64 of them are the server's probe set


@dataclass(frozen=True)
class Workload:
    """`clients` clients per round. Each does `steps` local steps with batches of `batch` of its `share` examples, which are grey images of
    `pixels` x `pixels`.

    rounds: number of timed rounds by competitor; strategies: stock Flower's name for each of ours.
    """

    name: str
    title: str
    model: str
    pixels: int
    clients: int
    share: int
    batch: int
    steps: int = 1
    learning_rate: float = 0.05
    rounds: Mapping[str, int] = field(default_factory=dict[str, int])
    strategies: Mapping[str, str] = field(default_factory=lambda: {"mean": "FedAvg"})
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def examples(self) -> int:
        """Examples in the training file."""
        return self.clients * self.share

    def flat(self, root: Path, strategy: str, transport: str, rounds: int) -> dict[str, Any]:
        """The flat keys of our leg. The model is evaluated once, at the end."""
        name, _, rest = strategy.partition(" ")
        own = 200 if self.extra else 0
        return {
            "name": f"benchmark-{self.name.lower()}",
            "data.name": "mnist",
            "data.root": str(root / "data" / data_name(self)),
            "data.cache-dir": str(root / "cache"),
            "data.num-clients": self.clients,
            "model.name": self.model,
            "client.batch-size": self.batch,
            "client.local-steps": self.steps,
            "client.block": self.clients // 2,  # one for each of two workers
            "client.learning-rate": self.learning_rate,
            "server.learning-rate": self.learning_rate,
            "server.momentum": 0.0,
            "strategy.name": name,
            **({"strategy.options": rest} if "=" in rest else {"strategy.bound": float(rest)} if rest else {}),
            "attack.name": "none",
            "attack.set-size": own,
            "schedule.burn-in-epochs": 0,
            "schedule.accumulate-rounds": rounds - 1,
            "schedule.triggers": 1,
            "schedule.recovery-rounds": 0,
            "evaluate.every": rounds,
            "monitor.action": "none",
            "twin": False,
            "control": False,
            "grid.transport": transport,
            **self.extra,
        }


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "W1",
            "MLP 64-64-10, 100 clients, a batch of 10",
            "mlp",
            8,
            100,
            12,
            10,
            rounds={"ours": 400, "loop": 400, "stock": 12, "pfl": 40},
        ),
        Workload(
            "W2",
            "MLP 64-64-10, 500 clients, a batch of 10",
            "mlp",
            8,
            500,
            12,
            10,
            rounds={"ours": 150, "loop": 150, "stock": 5, "pfl": 10},
        ),
        Workload(
            "W3",
            "CNN of 106 k, 50 clients, 5 steps of 10 images 28x28",
            "cnn",
            28,
            50,
            50,
            10,
            steps=5,
            rounds={"ours": 12, "loop": 12, "stock": 5, "pfl": 8},
        ),
        Workload(
            "W4",
            "ResNet-18 of 11.2 M, 20 clients, one image 8x8",
            "resnet18",
            8,
            20,
            12,
            1,
            rounds={"ours": 4, "loop": 8, "stock": 3},
            strategies={
                "mean": "FedAvg",
                "clip-before 1": "FedAvg",
                "flwr.Krum": "Krum",
                "byzfl.MultiKrum f = 4": "Krum",
                "byzfl.NNM+TrMean f = 4": "Krum",
            },
        ),
    )
}

ON_A_GPU = Workload(
    "G1",
    "ResNet-18 of 11.2 M, 100 clients, ten images 32x32",
    "resnet18",
    32,
    100,
    12,
    10,
    learning_rate=0.03,
    rounds={"stock": 3},
)

CURVE = ("W1x10", "W1x100", "W1x1000", "W1x10000")


def workload_of(name: str) -> Workload:
    """A workload by its name. `W1x1000` is W1 with 1,000 clients, for ours and the loop only."""
    base, _, clients = name.partition("x")
    if not clients:
        return {**WORKLOADS, "G1": ON_A_GPU}[base]
    plain, count = WORKLOADS[base], int(clients)
    rounds = dict.fromkeys(("ours", "loop"), max(10, 20_000 // max(count, 100)))
    return replace(
        plain, name=name, title=plain.title.replace(f"{plain.clients} clients", f"{count:,} clients"), clients=count, rounds=rounds
    )


def data_name(workload: Workload) -> str:
    return f"{workload.pixels}x{workload.pixels}-{workload.examples}"


def make_data(workload: Workload, root: Path) -> Path:
    """Write random images as files of `mnist` (in the IDX format) below `root/data`. Returns the folder."""
    folder = root / "data" / data_name(workload)
    raw = folder / "MNIST" / "raw"
    if raw.exists():
        return folder
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", workload.examples), ("t10k", TEST_EXAMPLES)):
        images = generator.integers(0, 256, (count, workload.pixels, workload.pixels), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return folder
