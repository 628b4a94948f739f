"""`python -m experiments.benchmarks.by_class.figures RUNS`: the figure of docs/results/dgc2.md, from the folders of its studies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.by_class.tables import Row, groups_of, rows_of
from experiments.benchmarks.images.tables import folders, studies_of
from experiments.report.figures.style import MARKERS, PAGE, PALETTE, drawn, entries_of, legend_below

LINE = 0.17  # inches: one attack
GOALS = {"all": 2.0, "class": 5.0}  # points that a defence was to lose at most: the dotted lines


def main(argv: Sequence[str] | None = None) -> int:
    arguments = folders("by_class", "figures", "The figure of docs/results/dgc2.md.", argv)
    groups = [group for group in groups_of(list(rows_of(studies_of(arguments.runs)))) if all("most_lost" in row for row in group)]
    if not groups:
        print(f"no run below {arguments.runs} has one without an attacker beside it", file=sys.stderr)
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(arguments.output / "by_class", groups)
    print(arguments.output / "by_class.png")
    return 0


def draw(path: Path, groups: Sequence[Sequence[Row]]) -> None:
    """What each attack took of the total and of the class that lost most, one dot per seed."""
    shares = sorted({row["malicious"] for group in groups for row in group})
    with drawn(path, PAGE, 0.6 + LINE * len(groups)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for place, group in enumerate(groups):
            share = shares.index(group[0]["malicious"])
            style = {"color": PALETTE[share], "marker": MARKERS[share], "linestyle": "", "label": f"{shares[share]:g} % malicious"}
            here = [place] * len(group)
            left.plot([row["clean_all"] - row["all"] for row in group], here, **style)
            right.plot([row["most_lost"] for row in group], here, **style)
        left.set_yticks(range(len(groups)), [_name(group[0]) for group in groups])
        left.invert_yaxis()
        left.set_xlabel("points of all classes lost")
        right.set_xlabel("points lost of the class that lost most")
        for axes, goal in ((left, GOALS["all"]), (right, GOALS["class"])):
            axes.axvline(0.0, color="black", linewidth=0.6)
            axes.axvline(goal, color="black", linewidth=0.6, linestyle=":")
        legend_below(figure, dict(sorted(entries_of(figure).items(), key=lambda entry: float(entry[0].split()[0]))))


def _name(row: Row) -> str:
    target = "" if row["class"] is None else f", class {row['class']}"
    return f"{row['study']}: {row['attack']}{target}"


if __name__ == "__main__":
    sys.exit(main())
