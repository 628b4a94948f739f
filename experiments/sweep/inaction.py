"""What a run's strategy did, and where strategy or attack did nothing: a defence that did not act is not a defence that held. It imports no
pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.sweep.study import Run

# What a coalition that never acted did in the rounds of its attack.
NO_ACT = {
    "idle": "the coalition sent only what its members would honestly send",
    "failed": "every malicious client failed in each round in which the coalition may act",
    "absent": "no malicious client was sampled in a round in which the coalition may act",
}

LITTLE = 5.0  # percent of a class that a model is right about by chance


def defence_text(summary: Mapping[str, Any]) -> str:
    """What the strategy of a run did, for the caption of its table; empty of one that reports nothing. Records of earlier versions have
    some of the figures only."""
    parts, rounds = list[str](), summary["rounds"]
    if skipped := _skipped(summary):
        parts.append(f"{skipped} of {rounds} rounds skipped ({summary['skipped']['reason']})")
    if clipped := summary.get("clipped"):
        share = f", {100.0 * clipped['updates']:.1f} % of the updates" if clipped["updates"] is not None else ""
        parts.append(f"clipped in {clipped['rounds']} of {rounds} rounds, {clipped['under_attack']} of them under attack{share}")
    if summary.get("judged"):
        parts.append(f"{_rounds(summary, 'refused')} rounds refused, {_rounds(summary, 'drifted')} drifts")
    if exceeded := _exceeded(summary):
        parts.append(f"more malicious clients than f = {summary['tolerance']['f']} in {exceeded} of {rounds} rounds")
    return " · ".join(parts)


def inaction_notes(runs: Sequence[Run]) -> list[str]:
    """Where the strategies of attacked runs did not act, or were given more malicious clients than they are made for, where attacks did
    not act, and where a burn-in taught nothing: a sentence for each strategy or attack and kind, with the number of its runs."""
    counts, totals = dict[tuple[str, str], int](), dict[str, int]()
    for run in runs:
        if (run.summary["poison_ratio"] or {}).get("configured") or _skipped(run.summary):
            for name, texts in ((_strategy(run), _inactions(run.summary)), (_attack(run), _attack_inactions(run))):
                totals[name] = totals.get(name, 0) + 1
                for text in texts:
                    counts[name, text] = counts.get((name, text), 0) + 1
    shares = {key: f" ({count} of {totals[key[0]]} attacked runs)" if len(runs) > 1 else "" for key, count in counts.items()}
    untrained = sum(map(_untrained, runs))
    share = f" ({untrained} of {len(runs)} runs)" if len(runs) > 1 else ""
    burn_in = [f"burn-in: the model knows one class at most after it, so that no attack can be seen{share}"] * bool(untrained)
    return [*(f"{strategy}: {text}{shares[strategy, text]}" for strategy, text in counts), *burn_in]


def _inactions(summary: Mapping[str, Any]) -> list[str]:
    texts = list[str]()
    if _skipped(summary):
        texts.append(f"rounds were skipped: {summary['skipped']['reason']}")
    if (clipped := summary.get("clipped")) and not clipped["under_attack"]:
        texts.append("the clip shortened nothing while the coalition acted")
    if (left_out := summary.get("filtering")) and not left_out["true_positive_rate"] and not left_out["false_positive_rate"]:
        texts.append("it left out no client while the coalition acted")
    if summary.get("judged") and not _rounds(summary, "refused") and not _rounds(summary, "drifted"):
        texts.append("the guard refused nothing and saw no drift")
    if _exceeded(summary):
        texts.append(f"more malicious clients acted than f = {summary['tolerance']['f']}, for which it is made")
    return texts


def _untrained(run: Run) -> bool:
    """Whether the burnt-in model is right about at most one of several classes."""
    classes = (run.summary.get("accuracy_by_class") or {}).get("burn_in") or ()
    known = [value for value in classes if value is not None and value > LITTLE]
    return bool(run.config.get("schedule.burn-in-epochs", 1)) and len(classes) > 1 and len(known) < 2


def _rounds(summary: Mapping[str, Any], name: str) -> int:
    """The attacked track's count of rounds of a kind; 0 in records without it."""
    return (summary.get(name) or {}).get("attacked") or 0


def _attack_inactions(run: Run) -> list[str]:
    """Why no trigger fired although one was planned; or that the coalition did nothing at all."""
    reason, rounds = run.summary.get("no_trigger"), run.summary.get("coalition")
    if reason and run.config.get("schedule.triggers", 1):
        return [f"no trigger fired: {reason}"]
    if not rounds or rounds.get("acted"):
        return []
    for role, text in NO_ACT.items():
        if rounds.get(role):
            return [text]
    return ["the run has no round in which the coalition may act (schedule.accumulate-rounds, schedule.triggers)"]


def _attack(run: Run) -> str:
    labels = run.cell.labels
    return labels.get("attack") or labels.get("attack.name") or str(run.config.get("attack.name", "the attack"))


def _skipped(summary: Mapping[str, Any]) -> int:
    return _rounds(summary, "skipped")


def _exceeded(summary: Mapping[str, Any]) -> int:
    return (summary.get("tolerance") or {}).get("exceeded", 0)


def _strategy(run: Run) -> str:
    labels = run.cell.labels
    return labels.get("strategy") or labels.get("strategy.name") or str(run.config.get("strategy.name", "the strategy"))
