"""The workers' replies merged into one result of the round, in block order, whatever order they arrived in."""

from __future__ import annotations

import functools

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fl_sim.wire.arrays import to_record
from fl_sim.wire.messages import CleaningCounts, ClientReport, CoalitionReply, Order, Reply, rows_sum
from fl_sim.wire.reduction import Node, reduce_tree, root

Result = tuple[Order, Reply | None, str]  # an order, its reply, and if there is none the reason


class MergedRound:
    """All results of one round's `order`."""

    def __init__(self, order: Order, results: list[Result]) -> None:
        self._order = order
        self._nodes: dict[Node, Tensor] = {}
        self._rows: dict[int, Tensor] = {}
        self._reports: dict[int, tuple[ClientReport, ...]] = {}
        self._cleaning: dict[int, CleaningCounts] = {}
        self._failures: list[ClientReport] = []
        self._honest: tuple[Tensor, float] | None = None
        self.retried: dict[str, str] = {}
        self.seconds = 0.0  # of the slowest worker, over all waves
        self.coalition: CoalitionReply | None = None
        self.add(results)

    def add(self, results: list[Result]) -> None:
        """Merge the results of one wave."""
        self._honest = None
        self.seconds += max((reply.seconds for _, reply, _ in results if reply), default=0.0)
        for part, reply, failure in results:
            if reply is None:
                clients_failed = [client for _, clients in part.blocks for client in clients]
                clients_failed += part.coalition.members if part.coalition else ()
                self._failures += [ClientReport(client, 0.0, float("nan"), failure) for client in clients_failed]
                if not clients_failed:
                    self.retried[f"order {len(self.retried)}"] = failure
                continue
            self._nodes |= reply.nodes
            self._rows |= reply.rows
            self._reports |= reply.reports
            self._cleaning |= reply.cleaning
            self.retried |= {f"block {position}": reason for position, reason in reply.retry.items()}
            self.coalition = reply.coalition or self.coalition

    def cleaning(self) -> tuple[CleaningCounts, CleaningCounts]:
        """What the cleaning did to the clients' own images, added in block order, and to the attacker's."""
        part = self.coalition
        own = [self._cleaning[position] for position in sorted(self._cleaning)] + ([part.clean] if part and part.clean else [])
        return functools.reduce(CleaningCounts.plus, own, CleaningCounts()), (part and part.poisoned) or CleaningCounts()

    def honest(self) -> tuple[Tensor, float]:
        """The honest clients' weighted sum (d,) and their weight, added in block order."""
        if self._honest is None:
            weight = sum(report.weight for position in sorted(self._reports) for report in self._reports[position])
            self._honest = self._tree_root(), weight
        return self._honest

    def honest_norm(self) -> float:
        """The l2 norm of the honest clients' weighted mean, 0 without honest clients."""
        total, weight = self.honest()
        return float(torch.linalg.vector_norm(total)) / weight if weight else 0.0

    def _tree_root(self) -> Tensor:
        """The root of the tree over the blocks; a block without a result counts as zeros."""
        count = self._order.num_blocks
        if count == 0:
            return torch.zeros_like(self._order.theta)
        nodes = self._nodes | {(0, position): rows_sum(rows, self._reports[position]) for position, rows in self._rows.items()}
        for position, _ in self._order.blocks:
            if position not in self._reports:
                nodes[0, position] = torch.zeros_like(self._order.theta)
        return reduce_tree(nodes, count)[root(count)]

    def reports(self) -> tuple[ClientReport, ...]:
        """Every sampled client's report, in id order."""
        honest = [report for position in sorted(self._reports) for report in self._reports[position]]
        coalition = list(self.coalition.reports) if self.coalition else []
        return tuple(sorted([*honest, *coalition, *self._failures], key=lambda report: report.client))

    def content(self) -> RecordDict:
        """The packed reply for a strategy of ours."""
        reports = [report for report in self.reports() if not report.failure]
        content = RecordDict(
            {
                "clients": ConfigRecord(
                    {
                        "ids": [report.client for report in reports],
                        "weights": [report.weight for report in reports],
                        "norms": [report.norm for report in reports],
                    }
                )
            }
        )
        if self._order.stacked:
            content["rows"] = to_record({"rows": self._stack()})
        else:
            total, _ = self.honest()
            if self.coalition:
                total = total + self.coalition.updates[0]
            content["sum"] = to_record({"sum": total})
        return content

    def _stack(self) -> Tensor:
        """All updates (n, d) in client-id order."""
        rows: dict[int, Tensor] = {}
        for position, reports in self._reports.items():
            rows |= zip((r.client for r in reports if not r.failure), self._rows[position], strict=True)
        if self.coalition:
            rows |= zip((r.client for r in self.coalition.reports if not r.failure), self.coalition.updates, strict=True)
        return torch.stack([rows[client] for client in sorted(rows)]) if rows else self._order.theta.new_zeros(0, len(self._order.theta))
