"""How well a strategy told malicious clients from honest ones: rates of the clients that it left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from statistics import fmean

from experiments.run.history import Line

RATES = ("true_positive_rate", "false_positive_rate", "precision", "recall")


def filter_rates(left_out: Collection[int], clients: Collection[int], malicious: Collection[int]) -> dict[str, float | None]:
    """Rates from 0 to 1 of a round; a positive is a client that was left out. None without a client that a rate counts.

    true_positive_rate (= recall): the share of the malicious clients that were left out; false_positive_rate: the share of the honest ones
    that were; precision: the share of malicious ones among those left out.
    """
    bad, out = set(malicious) & set(clients), set(left_out)
    honest = set(clients) - bad

    def share(part: set[int], whole: set[int]) -> float | None:
        return len(part) / len(whole) if whole else None

    recall = share(out & bad, bad)
    return dict(zip(RATES, (recall, share(out & honest, honest), share(out & bad, out), recall), strict=True))


def mean_rates(lines: Iterable[Line]) -> dict[str, float | None] | None:
    """The means over the rounds in which the coalition acted and the strategy selected; None without such a round."""
    rounds = [line["filtering"] for line in lines if "filtering" in line]
    values = {name: [rates[name] for rates in rounds if rates[name] is not None] for name in RATES}
    return {name: fmean(some) if some else None for name, some in values.items()} if rounds else None
