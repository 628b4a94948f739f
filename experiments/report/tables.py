"""Results of finished runs as tables for the terminal. It imports no pandas: every `fl-sim run` prints one of these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table
from rich.text import Text

from experiments.records.folder import failure_of, is_complete
from experiments.records.reading import DamagedError, read_config, read_rounds, read_summary
from experiments.sweep.inaction import defence_text
from experiments.sweep.numbers import published_numbers
from experiments.sweep.published import Pair, agreement, over_seeds
from experiments.sweep.study import run_folders

if TYPE_CHECKING:
    import pandas as pd

    from experiments.report.views import Matrix

FILTERED = ("true_positive_rate", "false_positive_rate")  # of a summary


def run_table(summary: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Table:
    """What a single run's command prints. Args: config, the run's flat keys."""
    accuracy, twin, control = summary["accuracy"], summary["clean_twin"] or {}, summary["control"] or {}
    table = Table(title=Text(f"test accuracy (%), {_trigger(summary)}"), title_justify="left")
    for column in ("", "before trigger", "after trigger", "final"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("attacked", *_shown(accuracy["before_trigger"], accuracy["after_trigger"], accuracy["final"]))
    table.add_row("clean twin", *_shown(None, twin.get("at_trigger"), twin.get("final")))
    table.add_row("control", *_shown(control.get("before_trigger"), control.get("after_trigger"), None))
    if honest := summary.get("honest_trigger"):
        table.add_row("honest trigger", *_shown(honest["before_trigger"], honest["after_trigger"], None))
    table.caption = (
        f"burn-in {_shown(accuracy['burn_in'])[0]} · drop {_shown(summary['drop'])[0]} · gain over control {_shown(summary['gain'])[0]} · "
        f"stealth gap {_shown(summary['stealth_gap'])[0]} · {summary['client_failures']} client failures, "
        f"{summary['retries']} retries · "
        f"{summary['rounds']} rounds of the attacked run; all in {summary['seconds']['total']:.0f} s{_coalition(summary)}"
    )
    if summary.get("worst_class"):
        table.caption += f" · {_class_words('worst class', summary['worst_class'])}"
        table.caption += f" · {_class_words('most harmed', summary['most_harmed_class'])}"
    if text := defence_text(summary):
        table.caption += f"\nstrategy: {text}"
    alarms = summary.get("alarms") or [0]
    if (config or {}).get("monitor.action") == "stop" and alarms[-1] == summary["rounds"]:
        table.caption += f"\nthe monitor ended the run in round {alarms[-1]}"
    if rates := summary.get("attack_success_rate"):
        base = f", clean twin {_shown(twin.get('attack_success_rate'))[0]}" if twin else ""
        words = " to ".join(_shown(rates["burn_in"], rates["end_of_attack"], rates["final"]))
        table.caption += f" · attack success rate (%): {words} (before, end of attack, end){base}"
    if rates := summary.get("filtering"):
        shown = ["-" if rates[name] is None else f"{100.0 * rates[name]:.0f}" for name in FILTERED]
        table.caption += f"\nleft out by the strategy: {shown[0]} % of the malicious and {shown[1]} % of the honest clients"
    table.caption_justify = "left"
    return table


def _class_words(what: str, one: Mapping[str, Any]) -> str:
    return f"{what} {one['class']}: {_shown(one['burn_in'])[0]} to {_shown(one['final'])[0]}"


def _trigger(summary: Mapping[str, Any]) -> str:
    """In which round the trigger fired, or why none did."""
    if summary["trigger_round"] is not None:
        return f"trigger in round {summary['trigger_round']}"
    return f"no trigger fired: {summary.get('no_trigger') or 'this version did not record why'}"


def _coalition(summary: Mapping[str, Any]) -> str:
    """What the coalition did, and how long its updates were; empty without one."""
    rounds, norm, honest = summary.get("coalition"), summary.get("malicious_norm"), summary.get("honest_norm")
    if not rounds:
        return ""
    text = f"\ncoalition: acted in {rounds['acted']} of {sum(rounds.values())} rounds before the recovery"
    others = {"idle": "honest", "failed": "failed", "absent": "not sampled"}
    text += "".join(f", {word} in {rounds[name]}" for name, word in others.items() if rounds[name])
    if norm and honest:
        text += f" · norm of its updates: median {norm['median']:.3g}, largest {norm['largest']:.3g}, honest {honest['median']:.3g}"
    return text


class RunList(NamedTuple):
    """A table of runs, and a sentence for each that is left out because its records are damaged."""

    table: Table
    problems: list[str]


def runs_table(root: Path) -> RunList:
    """Every run below a folder: its name, what it is, and how it ended; a run without a summary is incomplete."""
    table = Table(caption_justify="left")
    table.add_column("folder", no_wrap=True)  # a name in two lines cannot be searched for
    for column in ("strategy", "attack", "seed", "rounds", "after trigger (%)", "final (%)", "seconds"):
        table.add_column(column, justify="left" if column in ("strategy", "attack") else "right", overflow="fold")
    complete, problems = 0, list[str]()
    for folder in run_folders(root):
        try:
            config = read_config(folder)
            ended = _ended(folder)
        except DamagedError as error:
            problems.append(f"{error}; the run is left out")
            continue
        complete += is_complete(folder)
        names = (_short(config["strategy.name"]), _short(config["attack.name"]))
        table.add_row(str(folder.relative_to(root)), *names, str(config["seed"]), *ended)
    table.caption = f"{table.row_count} runs, {complete} complete" + (f", {len(problems)} damaged" if problems else "")
    return RunList(table, problems)


def _short(name: str) -> str:
    """A name without the folder of its file."""
    place, mark, rest = name.rpartition(".py:")
    return f"{Path(place).name}.py:{rest}" if mark else name


def _ended(folder: Path) -> list[str]:
    """A run's rounds, accuracies and seconds. Raises DamagedError for a complete run whose summary or rounds are damaged."""
    rounds = folder / "rounds.jsonl"
    try:
        if not os.path.lexists(folder / "summary.json"):
            # The last line may be half of one. A run that ended before its first round has no file.
            done = rounds.read_bytes().count(b"\n") if os.path.lexists(rounds) else 0
            return [f"{done} so far", "-", "-", "failed" if failure_of(folder) else "incomplete"]
    except OSError as error:
        raise DamagedError(f"{rounds} is damaged ({error.strerror})") from None
    read_rounds(folder)
    summary = read_summary(folder)
    accuracy = summary["accuracy"]
    return [str(summary["rounds"]), *_shown(accuracy["after_trigger"], accuracy["final"]), f"{summary['seconds']['total']:.0f}"]


def search_table(ranking: pd.DataFrame, limit: float, shown: int = 10) -> Table:
    """The settings of a search that left the least accuracy, those over the stealth limit (points) after all others.

    Args: ranking, of `search_ranking`."""
    table = Table(title=f"the worst of {len(ranking)} settings", title_justify="left", caption_justify="left")
    for column in ("left (%)", "phase cost", *ranking.columns[3:]):
        table.add_column(column, justify="right")
    for left, cost, over, *labels in ranking.head(shown).itertuples(index=False):
        table.add_row(f"{left:.1f}", f"{cost:.1f}" + " (over the limit)" * over, *labels)
    within = int((~ranking["over"]).sum())
    table.caption = f"accuracy after the trigger; with {within} settings the phase before it cost at most {limit:g} points"
    return table


def matrix_table(matrix: Matrix) -> Table:
    """A matrix of accuracies: mean (least to most) over the seeds."""
    table = Table(caption=matrix.what, caption_justify="left")
    texts = matrix.texts()
    table.add_column(matrix.axis, overflow="fold")
    for column in texts.columns:
        table.add_column(column, justify="right", overflow="fold")
    for row, *values in texts.itertuples():
        table.add_row(row, *values)
    return table


def published_table(entry: str, pairs: Sequence[Pair]) -> Table:
    """Published accuracies beside ours: mean (least to most) over the seeds, and the difference of the means."""
    source = published_numbers()[entry]["source"]
    table = Table(caption=f"test accuracy (%); published: {source}; {agreement(entry, pairs)}", caption_justify="left")
    for column in ("setting", "published", "ours", "ours - published"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for pair in pairs:
        table.add_row(pair.setting, f"{pair.published:.1f}", over_seeds(pair.ours), f"{pair.mean - pair.published:+.1f}")
    return table


def _shown(*values: float | None) -> list[str]:
    return ["-" if value is None else f"{value:.1f}" for value in values]
