"""Every fault has a defined outcome: asked again elsewhere, or left out and said; and the poison ratio is that of what was combined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict

from clients.client_app import answer
from experiments.records.folder import read_rounds, run_folder
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.data.sampling import malicious_clients
from fl_sim.grid.faults import REPLIES
from fl_sim.grid.reply_checks import reply_problem
from fl_sim.grid.transports import Answer, FlowerTransport, InlineTransport
from fl_sim.wire.messages import AttackState, ClientReport, CoalitionOrder, CoalitionReply, Order, Reply
from tests.support.workers import Workers, play, total

Configure = Callable[..., Config]

SAID = {
    "shape": "expected an update to have shape",
    "dtype": "expected an update in torch.float32, got torch.float64",
    "nan": "an update is not finite",
    "inf": "an update is not finite",
    "missing": "client 7 is missing",
    "duplicate": "client 7 is reported twice",
    "negative-weight": "client 7: expected a weight in (0, 10], got -1",
    "huge-weight": "client 7: expected a weight in (0, 10], got 1e+30",
    "nan-weight": "client 7: expected a weight in (0, 10], got nan",
}


def test_every_wrong_reply_is_in_the_table() -> None:
    assert set(SAID) == set(REPLIES)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", SAID)
def test_a_wrong_reply_is_asked_for_elsewhere(configure: Configure, kind: str, stacked: bool) -> None:
    clean = configure(attack__name="none")
    config = configure(attack__name="none", fault__reply=kind, fault__clients="7", fault__attempts="first")
    expected, _ = play(clean, Workers(2), stacked=stacked)
    content, outcome = play(config, Workers(2), stacked=stacked)
    name = "rows" if stacked else "sum"
    assert torch.equal(*(torch.from_numpy(c.array_records[name][name].numpy()) for c in (content, expected))), "the same bytes"
    assert len(outcome.combined) == 12
    (reason,) = outcome.retried.values()
    assert SAID[kind] in reason


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", SAID)
def test_a_reply_that_is_wrong_everywhere_is_left_out_with_its_block(configure: Configure, kind: str, stacked: bool) -> None:
    config = configure(attack__name="none", fault__reply=kind, fault__clients="7")
    _, outcome = play(config, Workers(2), stacked=stacked)
    assert outcome.combined == (0, 1, 2, 3, 8, 9, 10, 11), "the block of client 7 is 4 to 7; the others of its order are not lost"
    lost = {report.client: report.failure for report in outcome.reports if report.failure}
    assert set(lost) == {4, 5, 6, 7}
    assert all(SAID[kind] in reason for reason in lost.values())


@pytest.mark.parametrize("kind", SAID)
def test_a_wrong_coalition_is_left_out_and_the_poison_ratio_says_so(configure: Configure, kind: str) -> None:
    members = malicious_clients(configure())
    config = configure(fault__reply=kind, fault__clients=str(min(members)))
    _, outcome = play(config, Workers(2))
    assert not set(outcome.combined) & members
    assert len(outcome.combined) == 12 - len(members)
    assert outcome.poison_ratio == 0.0
    config = configure(fault__reply=kind, fault__clients=str(min(members)), fault__attempts="first")
    content, outcome = play(config, Workers(2))
    assert outcome.poison_ratio == pytest.approx(2 / 12)
    assert torch.equal(total(content), total(play(configure(), Workers(2))[0])), "the same bytes"


def test_a_run_with_faults_records_every_client(configure: Configure, tmp_path: Path) -> None:
    members = sorted(malicious_clients(configure()))
    honest = next(client for client in range(12) if client // 4 not in {member // 4 for member in members})
    config = configure(fault__reply="nan", fault__clients=str(honest), fault__raises=str(members[0]), control=False)
    execute_run(config, tmp_path, InlineTransport(answer), lambda *_: None)
    for line in read_rounds(run_folder(tmp_path, config))["attacked"]:
        lost = set(map(int, line["failures"]))
        block = set(range(honest // 4 * 4, honest // 4 * 4 + 4))
        assert lost == block | {members[0]}
        assert line["clients"] == 12 - len(lost)
        assert line["poison_ratio"] == pytest.approx((len(members) - 1) / (12 - len(lost)))


ORDER = Order(torch.zeros(3), torch.zeros(0), "{}", 1, 2, ((0, (0, 1)), (1, (2,))))
REPORTS = {0: (ClientReport(0, 1.0, 2.0), ClientReport(1, 1.0, float("nan"))), 1: (ClientReport(2, 2.0, 0.0),)}
REPLY = Reply({(1, 0): torch.ones(3)}, {}, REPORTS, {})


def test_a_right_reply_has_no_problem() -> None:
    assert reply_problem(ORDER, REPLY, 2.0) == ""
    assert reply_problem(ORDER, replace(REPLY, nodes={(0, 0): torch.ones(3), (0, 1): torch.ones(3)}), 2.0) == "", "merged or not"
    late = replace(REPLY, nodes={(0, 1): torch.ones(3)}, reports={1: REPORTS[1]}, retry={0: "raised"})
    assert reply_problem(ORDER, late, 2.0) == "", "a block on the retry list is not there"
    rows = replace(REPLY, nodes={}, rows={0: torch.ones(2, 3), 1: torch.ones(1, 3)})
    assert reply_problem(replace(ORDER, stacked=True), rows, 2.0) == ""
    part = CoalitionReply(torch.zeros(0, 3), (ClientReport(5, 0.0, float("nan"), "raised"),), AttackState(), {})
    asked = CoalitionOrder((5,), "accumulate", True, 4, AttackState())
    assert reply_problem(replace(ORDER, coalition=asked), replace(REPLY, coalition=part), 2.0) == "", "members may fail"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nodes": {(0, 0): torch.ones(3)}}, "expected sums of each block"),
        ({"nodes": {(1, 0): torch.ones(3), (0, 1): torch.ones(3)}}, "expected sums of each block"),
        ({"nodes": {(1, 0): torch.full((3,), float("-inf"))}}, "not finite"),
        ({"reports": {0: REPORTS[0]}}, "expected reports of the blocks [0, 1], got [0]"),
        ({"reports": {**REPORTS, 1: (ClientReport(9, 1.0, 1.0),)}}, "client 2 is missing"),
        ({"reports": {**REPORTS, 1: (ClientReport(2, 1.0, 1.0), ClientReport(9, 1.0, 1.0))}}, "client 9 was not asked"),
        ({"reports": {**REPORTS, 1: (ClientReport(2, 1.0, -1.0),)}}, "expected a norm >= 0"),
        ({"retry": {7: "?"}}, "expected blocks of the order on the retry list, got [7]"),
        ({"coalition": CoalitionReply(torch.zeros(1, 3), (), AttackState(), {})}, "expected no coalition's part"),
    ],
)
def test_wrong_replies(change: dict[str, object], sentence: str) -> None:
    assert sentence in reply_problem(ORDER, replace(REPLY, **change), 2.0)  # type: ignore[arg-type]


def odd_node(reply: Reply) -> Reply:
    return replace(reply, nodes={(-1, 0): next(iter(reply.nodes.values()))})


def text_weights(reply: Reply) -> Reply:
    return replace(reply, reports={p: tuple(r._replace(weight="heavy") for r in reports) for p, reports in reply.reports.items()})


def text_seconds(reply: Reply) -> Reply:
    return replace(reply, seconds="long")  # type: ignore[arg-type]


@pytest.mark.parametrize("garble", [odd_node, text_weights, text_seconds])
def test_a_reply_that_cannot_be_read_is_asked_for_elsewhere(configure: Configure, garble: Callable[[Reply], Reply]) -> None:
    class Garbled(Workers):
        def exchange(self, orders: Sequence[Order], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
            answers = super().exchange(orders, avoid, timeout)
            return [Answer(a.worker, garble(a.reply)) if a.reply and a.worker == 0 and avoid is None else a for a in answers]

    config = configure(attack__name="none")
    content, outcome = play(config, Garbled(2))
    assert torch.equal(total(content), total(play(config, Workers(2))[0]))
    (reason,) = outcome.retried.values()
    assert "cannot be read" in reason


class OneNode:
    """Flower's grid with one SuperNode that answers with something else."""

    def get_node_ids(self) -> list[int]:
        return [7]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [Message(RecordDict(), reply_to=message) for message in messages]


def test_a_flower_reply_of_another_program_is_a_failure_with_its_reason() -> None:
    (answer,) = FlowerTransport(OneNode()).exchange([ORDER])  # type: ignore[arg-type]
    assert answer.reply is None
    assert "the reply cannot be read (KeyError" in answer.failure
