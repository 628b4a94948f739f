"""`python -m experiments.benchmarks.images.figures RUNS`: the figures of docs/results/images.md, from the folders of their studies."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from experiments.benchmarks.images.tables import folders, image_row, studies_of
from experiments.records.reading import read_rounds
from experiments.report.figures.style import PAGE, PALETTE, drawn, entries_of, legend_below, wrapped
from experiments.sweep.study import Run

Values = Mapping[str, Sequence[float]]
SMOOTH = 5  # evaluations in a moving mean: the accuracy of a class swings by ten points between rounds


def main(argv: Sequence[str] | None = None) -> int:
    arguments = folders("images", "figures", "The figures of docs/results/images.md.", argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    studies = studies_of(arguments.runs)
    for name, draw in (("images", draw_images), ("cleaning", draw_cleaning), ("moles", draw_moles)):
        draw(arguments.output / name, studies)
        print(arguments.output / f"{name}.png", flush=True)
    return 0


def draw_images(path: Path, studies: Mapping[str, Sequence[Run]]) -> None:
    """What the first trigger takes, and what ten leave: after the phase, without it, and of honest images after the phase."""
    rows = [image_row("images_fashion", run) for run in studies["images_fashion"]]
    groups = list(dict.fromkeys((row["attack.epsilon"], row["attack.image-fraction"]) for row in rows))
    names = [f"{'16/255' if epsilon == '0.0627' else epsilon}\n{100 * float(share):.0f} %" for epsilon, share in groups]

    def values(group: Any, prefix: str, *, drop: bool) -> list[float]:
        here = [row for row in rows if (row["attack.epsilon"], row["attack.image-fraction"]) == group]
        return [row[f"{prefix}before"] - row[f"{prefix}after"] if drop else row[f"{prefix}end"] for row in here]

    tracks = {"after the phase": "", "without a phase (control)": "control_", "honest images after the phase": "honest_"}
    with drawn(path, PAGE, 2.3) as figure:
        for axes, drop in zip(figure.subplots(1, 2), (True, False), strict=True):
            bars(axes, names, {label: [values(group, prefix, drop=drop) for group in groups] for label, prefix in tracks.items()})
            axes.set_xlabel("epsilon, share of the images that are moved")
            axes.set_ylabel("points that the\nfirst trigger takes" if drop else "accuracy after\nten triggers (%)")
            axes.tick_params(axis="x", labelsize=6)
        legend_below(figure, entries_of(figure))


def draw_cleaning(path: Path, studies: Mapping[str, Sequence[Run]]) -> None:
    """Accuracy of each cleaning after the triggers, and without an attack."""
    rows = [image_row("cleaning_fashion", run) for run in studies["cleaning_fashion"]]
    names = list(dict.fromkeys(row["cleaning"] for row in rows))

    def values(cleaning: str, name: str, *, attacked: bool) -> list[float]:
        return [row[name] for row in rows if row["cleaning"] == cleaning and (row["acted"] is not None) == attacked]

    kinds = {"no attack": ("after", False), "before the first trigger": ("before", True), "after three triggers": ("end", True)}
    with drawn(path, PAGE, 2.3) as figure:
        axes = figure.subplots()
        bars(axes, names, {label: [values(name, key, attacked=acts) for name in names] for label, (key, acts) in kinds.items()})
        axes.set(ylabel="test accuracy (%)", ylim=(0, 100))
        axes.set_xticks(axes.get_xticks(), [wrapped(name, 14) for name in names])
        legend_below(figure, entries_of(figure))


def draw_moles(path: Path, studies: Mapping[str, Sequence[Run]]) -> None:
    """Accuracy of the attacked class by round, the mean over seeds, for one pair, ten of a hundred clients, three rules."""
    attacked, confounding, share = 4, 6, 0.1
    rules = ("mean", "clip-before 0.1", "clip-before 1")
    chosen = {"moles": "moles_fashion", "highest loss": "moles_fashion-highest-loss", "any of the class": "moles_fashion-random"}
    chosen |= {"no attacker": "moles_fashion-clean"}
    with drawn(path, PAGE, 2.3) as figure:
        for axes, rule in zip(figure.subplots(1, len(rules), sharey=True), rules, strict=True):
            for colour, (label, study) in zip(PALETTE, chosen.items(), strict=False):
                runs = [run for run in studies.get(study, ()) if run.cell.labels["strategy"] == rule]
                if label != "no attacker":
                    runs = [run for run in runs if run.config["attack.attacked"] == attacked]
                    runs = [run for run in runs if run.config["attack.confounding"] == confounding]
                    runs = [run for run in runs if run.config["attack.poison-ratio"] == share]
                if runs:
                    rounds, mean = _class_curve(runs, attacked)
                    axes.plot(rounds, mean, color=colour, label=label)
            axes.axvline(100.5, color="black", linewidth=0.6, linestyle=":")
            axes.set(title=rule, xlabel="round", ylim=(0, 100))
        figure.axes[0].set_ylabel("accuracy of the attacked\nclass (%)")
        legend_below(figure, entries_of(figure))


def _class_curve(runs: Sequence[Run], place: int) -> tuple[list[int], list[float]]:
    """Rounds, and the moving mean of the accuracy of a class, over all runs."""
    curves = [
        {line["round"]: line["by_class"][place] for line in read_rounds(run.folder)["attacked"] if "by_class" in line} for run in runs
    ]
    rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = [fmean(curve[round_] for curve in curves) for round_ in rounds]
    return rounds, [fmean(means[max(0, place - SMOOTH + 1) : place + 1]) for place in range(len(means))]


def bars(axes: Axes, names: Sequence[str], groups: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Bars side by side: the mean of each group at each name, with least and most."""
    width = 0.8 / len(groups)
    for place, (label, values) in enumerate(groups.items()):
        centers = [x + (place - (len(groups) - 1) / 2) * width for x in range(len(names))]
        means = [fmean(here) if here else float("nan") for here in values]
        least = [mean - min(here, default=mean) for mean, here in zip(means, values, strict=True)]
        most = [max(here, default=mean) - mean for mean, here in zip(means, values, strict=True)]
        axes.bar(centers, means, width, yerr=[least, most], color=PALETTE[place], label=label, error_kw={"linewidth": 0.6})
    axes.set_xticks(range(len(names)), names)


if __name__ == "__main__":
    sys.exit(main())
