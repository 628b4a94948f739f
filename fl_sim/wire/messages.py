"""What travels between the grid and a worker: orders, replies and the coalition's share, as Flower records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fl_sim.training.clipping import Clip
from fl_sim.wire.arrays import from_record, to_record
from fl_sim.wire.reduction import Node

Blocks = tuple[tuple[int, tuple[int, ...]], ...]  # (position in the round, client ids), in order


@dataclass(frozen=True)
class AttackState:
    """What an attack remembers from round to round, opaque to everything that carries it."""

    arrays: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    scalars: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class CoalitionOrder:
    """The coalition's part of a round: who of it was sampled, what the schedule says, and what it may know."""

    members: tuple[int, ...]
    phase: str
    accumulate: bool
    num_sampled: int
    state: AttackState
    honest_sum: Tensor | None = None  # (d,) second wave: the honest clients' weighted sum as the server will combine it
    honest_weight: float = 0.0
    witness: Blocks = ()  # first wave: every honest block, to be recomputed from the shared seeds


@dataclass(frozen=True)
class Order:
    """One message to one worker: the model theta (d,), batch-norm buffers (s,), and blocks of clients to compute."""

    theta: Tensor
    buffers: Tensor
    config: str
    round: int
    num_blocks: int
    blocks: Blocks
    stacked: bool = False
    before: Clip | None = None
    attempt: int = 0
    coalition: CoalitionOrder | None = None


class ClientReport(NamedTuple):
    """What became of one client: weight and norm of its update; `failure` is empty if the update is in the result."""

    client: int
    weight: float
    norm: float
    failure: str = ""


@dataclass(frozen=True)
class CoalitionReply:
    """The coalition's updates, combined (1, d) or stacked (m, d), its new state and what it tells the records."""

    updates: Tensor
    reports: tuple[ClientReport, ...]
    state: AttackState
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """A worker's answer: tree nodes or rows by block position, reports by position, blocks to be tried elsewhere; and the seconds that
    it worked, without what carries its messages."""

    nodes: Mapping[Node, Tensor]
    rows: Mapping[int, Tensor]
    reports: Mapping[int, tuple[ClientReport, ...]]
    retry: Mapping[int, str]
    coalition: CoalitionReply | None = None
    seconds: float = 0.0


def rows_sum(rows: Tensor, reports: tuple[ClientReport, ...]) -> Tensor:
    """The weighted sum (d,) of a block's rows (k, d), whose reports without failure stand in the same order."""
    return torch.tensor([report.weight for report in reports if not report.failure], device=rows.device) @ rows


def order_to_content(order: Order) -> RecordDict:
    """An order as a Flower message's content; the model stands alone under "model", so a transport may share it."""
    content = RecordDict({"model": to_record({"theta": order.theta, "buffers": order.buffers})})
    content["order"] = ConfigRecord(
        {
            "config": order.config,
            "round": order.round,
            "num-blocks": order.num_blocks,
            "stacked": order.stacked,
            "clip-norm": order.before.norm if order.before else "",
            "clip-bound": order.before.bound if order.before else 0.0,
            "attempt": order.attempt,
            **_blocks_to_lists("", order.blocks),
        }
    )
    if order.coalition:
        part = order.coalition
        content["coalition"] = ConfigRecord(
            {
                "members": list(part.members),
                "phase": part.phase,
                "accumulate": part.accumulate,
                "num-sampled": part.num_sampled,
                "honest-weight": part.honest_weight,
                **_blocks_to_lists("witness-", part.witness),
            }
        )
        content["knowledge"] = to_record({} if part.honest_sum is None else {"honest-sum": part.honest_sum})
        _state_to_content(content, part.state)
    return content


def order_from_content(content: RecordDict, device: Any = "cpu") -> Order:
    """The inverse of `order_to_content`, with tensors on `device`."""
    fields = _config(content, "order")
    model = _arrays(content, "model", device)
    bound = cast(float, fields["clip-bound"])
    order = Order(
        theta=model["theta"],
        buffers=model["buffers"],
        config=cast(str, fields["config"]),
        round=cast(int, fields["round"]),
        num_blocks=cast(int, fields["num-blocks"]),
        blocks=_blocks_from_lists("", fields),
        stacked=cast(bool, fields["stacked"]),
        before=Clip(cast(Any, fields["clip-norm"]), bound) if fields["clip-norm"] else None,
        attempt=cast(int, fields["attempt"]),
    )
    if "coalition" not in content:
        return order
    part = _config(content, "coalition")
    knowledge = _arrays(content, "knowledge", device)
    coalition = CoalitionOrder(
        members=tuple(cast(list[int], part["members"])),
        phase=cast(str, part["phase"]),
        accumulate=cast(bool, part["accumulate"]),
        num_sampled=cast(int, part["num-sampled"]),
        state=_state_from_content(content, device),
        honest_sum=knowledge.get("honest-sum"),
        honest_weight=cast(float, part["honest-weight"]),
        witness=_blocks_from_lists("witness-", part),
    )
    return replace(order, coalition=coalition)


def reply_to_content(reply: Reply) -> RecordDict:
    """A reply as a Flower message's content."""
    content = RecordDict(
        {
            "nodes": to_record({f"{level}.{index}": total for (level, index), total in reply.nodes.items()}),
            "rows": to_record({str(position): rows for position, rows in reply.rows.items()}),
            "retry": ConfigRecord({str(position): reason for position, reason in reply.retry.items()}),
            "reports": ConfigRecord(),
            "work": ConfigRecord({"seconds": reply.seconds}),
        }
    )
    for position, reports in reply.reports.items():
        _reports_to_record(_config(content, "reports"), str(position), reports)
    if reply.coalition:
        content["updates"] = to_record({"updates": reply.coalition.updates})
        content["metrics"] = ConfigRecord(dict(reply.coalition.metrics))
        content["members"] = ConfigRecord()
        _reports_to_record(_config(content, "members"), "0", reply.coalition.reports)
        _state_to_content(content, reply.coalition.state)
    return content


def reply_from_content(content: RecordDict, device: Any = "cpu") -> Reply:
    """The inverse of `reply_to_content`."""
    nodes = {cast(Node, tuple(map(int, key.split(".")))): total for key, total in _arrays(content, "nodes", device).items()}
    reports = _config(content, "reports")
    positions = sorted({int(key.split(".")[0]) for key in reports})
    coalition = None
    if "updates" in content:
        coalition = CoalitionReply(
            updates=_arrays(content, "updates", device)["updates"],
            reports=_reports_from_record(_config(content, "members"), "0"),
            state=_state_from_content(content, device),
            metrics={key: cast(float, value) for key, value in _config(content, "metrics").items()},
        )
    return Reply(
        nodes=nodes,
        rows={int(key): rows for key, rows in _arrays(content, "rows", device).items()},
        reports={position: _reports_from_record(reports, str(position)) for position in positions},
        retry={int(key): cast(str, reason) for key, reason in _config(content, "retry").items()},
        coalition=coalition,
        seconds=cast(float, _config(content, "work")["seconds"]),
    )


def _arrays(content: RecordDict, name: str, device: Any) -> dict[str, Tensor]:
    return from_record(cast(ArrayRecord, content[name]), device)


def _config(content: RecordDict, name: str) -> ConfigRecord:
    return cast(ConfigRecord, content[name])  # content.config_records would first collect all of its kind


def _blocks_to_lists(prefix: str, blocks: Blocks) -> dict[str, Any]:
    return {
        prefix + "positions": [position for position, _ in blocks],
        prefix + "sizes": [len(clients) for _, clients in blocks],
        prefix + "clients": [client for _, clients in blocks for client in clients],
    }


def _blocks_from_lists(prefix: str, fields: Mapping[str, Any]) -> Blocks:
    clients, blocks, start = cast(list[int], fields[prefix + "clients"]), [], 0
    for position, size in zip(fields[prefix + "positions"], fields[prefix + "sizes"], strict=True):
        blocks.append((position, tuple(clients[start : start + size])))
        start += size
    return tuple(blocks)


def _reports_to_record(record: ConfigRecord, key: str, reports: tuple[ClientReport, ...]) -> None:
    record[f"{key}.clients"] = [report.client for report in reports]
    record[f"{key}.weights"] = [report.weight for report in reports]
    record[f"{key}.norms"] = [report.norm for report in reports]
    failures = [report.failure for report in reports]
    record[f"{key}.failures"] = failures if any(failures) else []  # Flower looks at each entry of a list


def _reports_from_record(record: ConfigRecord, key: str) -> tuple[ClientReport, ...]:
    clients, weights, norms, failures = (cast(list[Any], record[f"{key}.{name}"]) for name in ("clients", "weights", "norms", "failures"))
    return tuple(map(ClientReport, clients, weights, norms, failures or [""] * len(clients)))


def _state_to_content(content: RecordDict, state: AttackState) -> None:
    content["state-arrays"] = to_record(dict(state.arrays))
    content["state-scalars"] = ConfigRecord(dict(state.scalars))


def _state_from_content(content: RecordDict, device: Any) -> AttackState:
    scalars = {key: cast(float, value) for key, value in _config(content, "state-scalars").items()}
    return AttackState(_arrays(content, "state-arrays", device), scalars)
