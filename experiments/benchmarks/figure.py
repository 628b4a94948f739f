"""The figure of the time per round by the number of clients."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")


def curve_figure(path: Path, legs_by_clients: Mapping[int, Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    """One line per leg, log-log, and a dashed line of slope 1 for comparison. Args: legs_by_clients, the entries of each leg by clients."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    legs = list(dict.fromkeys(leg for legs in legs_by_clients.values() for leg in legs))
    for colour, leg in zip(PALETTE, legs, strict=False):
        points = [
            (clients, statistics.median(entry["round"] for entry in entries[leg]))
            for clients, entries in legs_by_clients.items()
            if leg in entries
        ]
        axes.plot([x for x, _ in points], [1000 * y for _, y in points], color=colour, marker="o", markersize=3.5, label=leg, linewidth=1.4)
    clients = sorted(legs_by_clients)
    last = max(statistics.median(entry["round"] for entry in entries) for entries in legs_by_clients[clients[-1]].values()) * 1000
    axes.plot(clients, [last * n / clients[-1] for n in clients], color="#000000", linestyle="--", linewidth=0.8, label="linear")
    axes.set(xscale="log", yscale="log", xlabel="clients per round", ylabel="time per round (ms)")
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)
