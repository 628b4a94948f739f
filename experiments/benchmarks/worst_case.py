"""`python -m experiments.benchmarks.worst_case RUNS...`: the map of docs/worst_case.md, from the folders of `fl-sim search worst_case_map`.

A run in one of them replaces the row of the table with the same strategy, images, members and attack. Writes the table, draws the map
of the strategies that have more than the first case, and the figure of the first case, beside the page, and prints the page's tables in
Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.report.figures.style import PAGE, PALETTE, drawn, entries_of, legend_below
from experiments.sweep.search import left_after, worst_class_left
from experiments.sweep.study import Run, complete_runs, read_study
from fl_sim.atomic_files import write_whole

KEYS = ["strategy", "images", "m", "attack"]
LEFT = {"accuracy": "all classes", "worst_class": "the worst class"}
CLEAN = "none"
FIRST = (1, 10)  # images in an update and members of 100 of the case that all strategies have


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.worst_case", description="The map of docs/worst_case.md, from its searches."
    )
    parser.add_argument("runs", type=Path, nargs="*", help="folders with searches; without one the table is drawn as it is")
    parser.add_argument("--table", type=Path, default=Path("docs/results/worst_case.csv"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"))
    arguments = parser.parse_args(argv)
    found = pd.DataFrame(rows(run for folder in arguments.runs for run in runs_of(folder)))
    known = pd.read_csv(arguments.table) if arguments.table.exists() else found
    table = pd.concat([known, found], ignore_index=True).drop_duplicates(KEYS, keep="last").sort_values(KEYS)
    write_whole(arguments.table, table.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
    other = table[(table["images"] != FIRST[0]) | (table["m"] != FIRST[1])]
    several = table[table["strategy"].isin(other["strategy"])]
    draw(arguments.output / "worst_case_map", several)
    draw_case(arguments.output / "worst_case", table, *FIRST)
    print(markdown(several))
    return 0


def runs_of(folder: Path) -> list[Run]:
    """The complete runs of the searches below a folder."""
    return [run for path in sorted(folder.glob("**/study.json")) for run in complete_runs(path.parent, read_study(path.parent)).runs]


def rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Of each run the strategy, the images of an update, the members of 100, the attack's name on the page, and what it left (percent)."""
    return [
        {
            "strategy": run.cell.labels["strategy"],
            "images": run.config["client.batch-size"],
            "m": round(100 * float(run.cell.labels["attack.malicious-fraction"])),
            "attack": attack_name(run.cell.flat),
            "before_trigger": run.summary["accuracy"]["before_trigger"],
            "accuracy": left_after(run.summary),
            "worst_class": worst_class_left(run.summary),
        }
        for run in runs
    ]


def attack_name(settings: Mapping[str, Any]) -> str:
    """The name on the page of an attack of the search, from a cell's settings by key."""
    if (name := settings["attack.name"]) != "accumulative":
        return "ALIE" if name == "alie" else str(name)
    if settings.get("attack.objective") != "erosion":
        return "default"
    if settings["attack.class"] == -1:
        return "all classes"
    if settings.get("attack.provoke"):
        return "provoked"
    if settings.get("attack.delivery") == "rehearse":
        return "rehearsed"
    return "short" if settings.get("attack.budget") == "client" else "exact"


def least(table: pd.DataFrame, left: str) -> pd.DataFrame:
    """By strategy, images and members: the least that an attack left and its name, and the same without one (`clean`)."""
    cases = KEYS[:3]
    attacked = table[table["attack"] != CLEAN]
    worst = attacked.loc[attacked.groupby(cases)[left].idxmin()].set_index(cases)[[left, "attack"]]
    return worst.join(table[table["attack"] == CLEAN].set_index(cases)[left].rename("clean"))


def markdown(table: pd.DataFrame) -> str:
    """For each number of images a table of strategies by members: the least of all and the attack, the least of a class and the attack."""
    both = [_cells(table, left) for left in LEFT]
    strategies = order(table)
    parts: list[str] = []
    for images in sorted(set(table["images"])):
        members = sorted(set(table[table["images"] == images]["m"]))
        lines = ["| strategy | " + " | ".join(f"m = {m}" for m in members) + " |", "| --- " * (len(members) + 1) + "|"]
        for strategy in strategies:
            shown = [", ".join(cells[case] for cells in both if (case := (strategy, images, m)) in cells) or "-" for m in members]
            if any(text != "-" for text in shown):
                lines.append(f"| `{strategy}` | " + " | ".join(shown) + " |")
        parts.append(f"{images} image{'s' if images > 1 else ''}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _cells(table: pd.DataFrame, left: str) -> dict[tuple[Any, ...], str]:
    frame = least(table, left)
    texts = [f"{value:.1f} {attack}" for value, attack in zip(frame[left], frame["attack"], strict=True)]
    return dict(zip(frame.index.to_list(), texts, strict=True))


def order(table: pd.DataFrame) -> list[str]:
    """The strategies, those first whose least class is largest in the mean over the cases."""
    means = least(table, "worst_class")["worst_class"].groupby("strategy").mean()
    return [str(name) for name in means.sort_values(ascending=False).index]


def draw(path: Path, table: pd.DataFrame) -> None:
    """Heat maps of the least of all and of the least of a class: strategies by members, for one image and for ten."""
    strategies, cases = order(table), sorted(set(zip(table["images"], table["m"], strict=True)))
    with drawn(path, PAGE, 0.28 * len(strategies) + 1.2) as figure:
        for axes, (left, title) in zip(figure.subplots(1, len(LEFT), sharey=True), LEFT.items(), strict=True):
            frame = least(table, left)[left].unstack(["images", "m"]).reindex(index=strategies, columns=cases)
            grid = frame.to_numpy(dtype=float)
            axes.imshow(np.ma.masked_invalid(grid), cmap="cividis", vmin=0.0, vmax=100.0, aspect="auto")
            for (row, column), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color="white" if value < 55 else "black")
            axes.set_xticks(range(len(cases)), [str(m) for _, m in cases], fontsize=7)
            axes.set_yticks(range(len(strategies)), strategies, fontsize=7)
            axes.grid(visible=False)
            axes.set_title(f"{title}: the least that\nan attack left (%)", fontsize=8)
            axes.set_xlabel("malicious clients of 100\n(one image in an update; ten images)", fontsize=7)
            for edge in (place for place in range(1, len(cases)) if cases[place][0] != cases[place - 1][0]):
                axes.axvline(edge - 0.5, color="white", linewidth=3)


def draw_case(path: Path, table: pd.DataFrame, images: int, m: int) -> None:
    """Of one number of images and of members, by strategy: what no attack and the worst one left, of all classes and of the worst."""
    case = table[(table["images"] == images) & (table["m"] == m)]
    if case.empty:
        return
    frames = {left: least(case, left).droplevel(["images", "m"]) for left in LEFT}
    worst = frames["worst_class"].assign(accuracy=frames["accuracy"]["accuracy"])
    strategies = [str(name) for name in worst.sort_values(["worst_class", "accuracy"], ascending=False).index]
    with drawn(path, PAGE, 0.19 * len(strategies) + 0.9) as figure:
        for axes, (left, title) in zip(figure.subplots(1, len(LEFT), sharey=True), LEFT.items(), strict=True):
            frame = frames[left].reindex(strategies)
            axes.hlines(range(len(frame)), frame[left], frame["clean"], color=PALETTE[7], linewidth=1.0)
            axes.plot(frame["clean"], range(len(frame)), "o", color=PALETTE[0], markerfacecolor="none", label="no attack")
            axes.plot(frame[left], range(len(frame)), "s", color=PALETTE[2], label="least that an attack left")
            axes.set_yticks(range(len(strategies)), strategies)
            axes.set(title=title, xlabel="test accuracy (%)", xlim=(-3, 100))
        figure.axes[0].invert_yaxis()
        legend_below(figure, entries_of(figure))


if __name__ == "__main__":
    sys.exit(main())
