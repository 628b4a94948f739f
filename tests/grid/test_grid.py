"""The ClientGrid: the result does not depend on workers, packing, waves or arrival; failures are retried and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clients import honest
from clients.action import Action
from clients.catalogue import ATTACKS
from clients.client_app import answer
from clients.honest import RoundInputs, compute_blocks
from clients.knowledge import Knowledge
from experiments.benchmarks.workloads import WORKLOADS, make_data
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.data.sampling import malicious_clients
from fl_sim.grid.transports import InlineTransport, Transport
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.outside_code import OutsideCodeError
from fl_sim.training import local as training
from fl_sim.training.clipping import Clip
from fl_sim.training.local import block_sum, block_updates, weights_of
from fl_sim.wire.arrays import from_record
from fl_sim.wire.messages import AttackState
from tests.support.workers import Workers, play, total

Configure = Callable[..., Config]


@pytest.mark.parametrize("waves", [1, 2])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("clip", [None, Clip("l2", 0.5)])
def test_same_bytes_for_any_number_of_workers_and_waves(configure: Configure, workers: int, waves: int, clip: Clip | None) -> None:
    config = configure(client__block=2, data__num_clients=13)
    reference, _ = play(config, InlineTransport(answer), clip=clip)
    content, outcome = play(config, Workers(workers), clip=clip, waves=waves)
    assert torch.equal(total(content), total(reference))
    assert content.config_records["clients"] == reference.config_records["clients"] or clip is None
    assert outcome.waves == waves
    assert outcome.metrics["scale"] > 0.0, "the coalition acted"


@pytest.mark.parametrize("waves", [1, 2])
def test_stacked_replies_hold_every_update_in_client_order(configure: Configure, waves: int) -> None:
    config = configure(attack__name="none", attack__malicious_fraction=0.0)
    content, _ = play(config, Workers(3), stacked=True, waves=waves)
    rows = from_record(content.array_records["rows"])["rows"]
    federation = load_federation(config)
    module = new_module(config, federation)
    slow = replace_engine(config, "loop")
    for client in range(12):
        batches = federation.cohort([client], 1, 1, config.client.batch_size)
        expected = block_updates(FlatModel(module), flat_parameters(module), batches, slow.client)[0]
        torch.testing.assert_close(rows[client], expected, rtol=1e-4, atol=1e-6)


def replace_engine(config: Config, engine: str) -> Config:
    return config.model_copy(update={"client": config.client.model_copy(update={"engine": engine})})


def test_stacked_and_reduced_rounds_of_a_coalition_agree(configure: Configure) -> None:
    config = configure()
    reduced, _ = play(config, Workers(2), clip=Clip("l2", 1e9))
    stacked, outcome = play(config, Workers(2), stacked=True)
    rows = from_record(stacked.array_records["rows"])["rows"]
    weights = torch.tensor(stacked.config_records["clients"]["weights"])
    torch.testing.assert_close(weights @ rows, total(reduced), rtol=1e-4, atol=1e-4)
    assert outcome.poison_ratio == pytest.approx(2 / 12)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("steps", [1, 3])
def test_local_training_is_a_plain_pytorch_loop(configure: Configure, engine: str, steps: int) -> None:
    """FedSGD and several local steps against torch.optim.SGD on one client at a time."""
    config = configure(client__local_steps=steps, client__learning_rate=0.1, client__batch_size=4, client__engine=engine)
    federation = load_federation(config)
    batches = federation.cohort([0, 5, 7], 3, steps, 4)
    module = new_module(config, federation)
    theta = flat_parameters(module)
    updates = block_updates(FlatModel(module), theta, batches, config.client)
    for row in range(3):
        local = new_module(config, federation)
        optimiser = torch.optim.SGD(local.parameters(), lr=0.1)
        for step in range(steps):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(local(batches.inputs[row, step]), batches.labels[row, step]).backward()
            optimiser.step()
        torch.testing.assert_close(updates[row], (theta - flat_parameters(local)) / 0.1, rtol=1e-3, atol=1e-5)
    assert weights_of(batches) == [4.0 * steps] * 3


def test_batches_drawn_together_are_those_drawn_alone(configure: Configure) -> None:
    config = configure(data__num_clients=300, client__batch_size=5)
    federation = load_federation(config)
    together = federation.cohort(list(range(300)), 4, 2, 5)
    assert len(set(together.sizes)) > 1
    for start in range(0, 300, 7):
        alone, part = federation.cohort(list(range(start, min(start + 7, 300))), 4, 2, 5), together.part(start, start + 7)
        assert part.sizes == alone.sizes
        assert all(torch.equal(a, b) for a, b in zip(part[:3], alone[:3], strict=True))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("before", [None, Clip("l2", 0.5)])
def test_a_block_is_the_same_bytes_whichever_blocks_it_is_drawn_with(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: Clip | None, stacked: bool
) -> None:
    """Images of 81 numbers: a block's would begin anywhere in memory, and sums round by that."""
    workload = replace(WORKLOADS["W1"], pixels=9, clients=16, share=5)
    folder = make_data(workload, tmp_path)
    config = configure(
        data__name="mnist", data__root=str(folder), data__num_clients=15, model__name="mlp", client__batch_size=1, attack__set_size=2
    )
    federation = load_federation(config)
    module = new_module(config, federation)
    inputs = RoundInputs(config, federation, FlatModel(module), flat_parameters(module), 1, before, stacked)
    blocks = tuple((position, tuple(range(3 * position, 3 * position + 3))) for position in range(5))
    monkeypatch.setattr(honest, "BATCH_NUMBERS", 10**9)
    together = compute_blocks(inputs, blocks, last_attempt=False)
    monkeypatch.setattr(honest, "BATCH_NUMBERS", 1)
    alone = compute_blocks(inputs, blocks, last_attempt=False)
    monkeypatch.setattr(honest, "BATCH_NUMBERS", 2 * 3 * 81)
    pairs = compute_blocks(inputs, blocks, last_attempt=False)
    for other in (alone, pairs):
        assert other.reports == together.reports or before is None  # NaN norms are not equal to themselves
        assert all(torch.equal(other.sums[position], value) for position, value in together.sums.items())
        assert all(torch.equal(other.rows[position], value) for position, value in together.rows.items())
    assert len(together.sums) + len(together.rows) == 5


def test_a_block_that_cannot_be_drawn_leaves_the_others_alone(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure()
    federation = load_federation(config)
    module = new_module(config, federation)
    inputs = RoundInputs(config, federation, FlatModel(module), flat_parameters(module), 1, None, False)
    cohort = federation.cohort

    def unreadable(clients: list[int], *rest: int) -> Any:
        if 4 in clients:
            raise OSError("the page of client 4")
        return cohort(clients, *rest)

    monkeypatch.setattr(federation, "cohort", unreadable)
    blocks = ((0, (0, 1, 2)), (1, (3, 4, 5)), (2, (6, 7)))
    retry = compute_blocks(inputs, blocks, last_attempt=False).retry
    assert list(retry) == [1]
    assert retry[1].endswith("OSError: the page of client 4")
    reports = compute_blocks(inputs, blocks, last_attempt=True).reports
    failures = {report.client: report.failure for position in reports for report in reports[position] if report.failure}
    assert list(failures) == [4]
    assert failures[4].endswith("OSError: the page of client 4")


def test_a_block_of_a_large_model_is_summed_in_parts(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace_engine(configure(client__batch_size=4), "vmap")
    federation = load_federation(config)
    batches, module = federation.cohort(list(range(7)), 3, 1, 4), new_module(config, federation)
    model, theta = FlatModel(module), flat_parameters(module)
    bound = Clip("l2", float(block_updates(model, theta, batches, config.client).norm(dim=1).median()))
    whole = block_sum(model, theta, batches, config.client, bound)
    monkeypatch.setattr(training, "ROW_NUMBERS", 3 * len(theta))
    most = list[int]()
    monkeypatch.setattr(training, "block_updates", lambda *args: (rows := block_updates(*args), most.append(len(rows)))[0])
    parts = block_sum(model, theta, batches, config.client, bound)
    assert most == [3, 3, 1]
    assert parts.weights == whole.weights
    torch.testing.assert_close(parts.total, whole.total)
    assert parts.norms == pytest.approx(whole.norms)


def test_small_shares_are_padded_without_a_trace(configure: Configure) -> None:
    """Clients with fewer examples than the batch: weight and gradient are those of the share alone."""
    config = configure(data__num_clients=300, client__batch_size=5)
    federation = load_federation(config)
    sizes = [len(share) for share in federation.splits.shares]
    assert min(sizes) < 5
    small, large = sizes.index(min(sizes)), sizes.index(max(sizes))
    together = federation.cohort([small, large], 1, 1, 5)
    alone = federation.cohort([small], 1, 1, 5)
    module = new_module(config, federation)
    model, theta = FlatModel(module), flat_parameters(module)
    torch.testing.assert_close(
        block_updates(model, theta, together, config.client)[0], block_updates(model, theta, alone, config.client)[0], rtol=1e-4, atol=1e-6
    )
    assert weights_of(together)[0] == min(sizes)


def test_a_failing_client_is_retried_elsewhere_then_left_out_and_named(configure: Configure) -> None:
    config = configure(fault__raises="3", fault__nan="7")
    transport = Workers(2)
    content, outcome = play(config, transport, phase="recover")
    failures = {report.client: report.failure for report in outcome.reports if report.failure}
    assert set(failures) == {3, 7}
    assert "fault.raises" in failures[3]
    assert "not finite" in failures[7]
    assert outcome.combined == tuple(client for client in range(12) if client not in (3, 7))
    assert set(outcome.retried) == {"block 0", "block 1"}
    assert bool(torch.isfinite(total(content)).all())
    assert len(transport.sent) == 3, "one wave and one retry for each broken block"


@pytest.mark.parametrize("broken", [0, 1])
def test_a_dead_workers_clients_are_computed_elsewhere(configure: Configure, broken: int) -> None:
    config = configure()
    healthy, _ = play(config, Workers(2))
    content, outcome = play(config, Workers(2, broken=[broken]))
    assert torch.equal(total(content), total(healthy))
    assert len(outcome.combined) == 12
    assert any(reason.startswith("worker died; asked elsewhere: clients") for reason in outcome.retried.values())


def test_with_every_worker_dead_the_round_is_empty_and_says_so(configure: Configure) -> None:
    content, outcome = play(configure(), Workers(2, broken=[0, 1]), phase="recover")
    assert outcome.combined == ()
    assert {report.failure for report in outcome.reports} == {"worker died"}
    assert content.config_records["clients"]["ids"] == []


def test_one_wave_where_knowledge_or_transport_allow_it(configure: Configure) -> None:
    config = configure()
    assert play(config, InlineTransport(answer))[1].waves == 1
    assert play(config, Workers(2))[1].waves == 2
    assert play(config, Workers(2, slow_waves=True))[1].waves == 1
    assert play(configure(attack__knowledge="coalition"), Workers(2))[1].waves == 1
    assert play(configure(attack__knowledge="updates"), Workers(2))[1].waves == 1
    assert play(config, Workers(2), phase="recover")[1].waves == 1
    assert play(config, Workers(2), max_messages=1)[1].waves == 1


@pytest.mark.parametrize(
    "transport", [InlineTransport(answer), Workers(2), Workers(2, slow_waves=True)], ids=["inline", "two waves", "one wave"]
)
def test_an_attack_that_raises_costs_its_members_and_no_honest_client(
    configure: Configure, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no plan")

    monkeypatch.setitem(ATTACKS, "accumulative", broken)
    config = configure(attack__on_error="record")
    _, outcome = play(config, transport)
    assert {report.client for report in outcome.reports if report.failure} == malicious_clients(config)
    (reason,) = {report.failure for report in outcome.reports if report.failure}
    assert reason.endswith("ZeroDivisionError: no plan")
    assert len(outcome.combined) == 10
    with pytest.raises(OutsideCodeError, match=r"attack.on-error = 'stop'(.|\n)*raise ZeroDivisionError"):
        play(configure(), transport)


def test_a_failing_member_is_left_out_and_the_others_act(configure: Configure) -> None:
    first, second = sorted(malicious_clients(configure()))
    _, outcome = play(configure(fault__raises=str(first)), Workers(2))
    assert {report.client: report.failure for report in outcome.reports if report.failure} == {
        first: f"client {first} raised (fault.raises)"
    }
    assert second in outcome.combined
    assert outcome.metrics["scale"] > 0.0
    assert outcome.poison_ratio == pytest.approx(1 / 11)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_single_updates_are_shown_and_change_nothing_else(
    configure: Configure, workers: int, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `attack.knowledge = "updates"` the coalition sees what each honest client sends, before the clip; the server's result, and the sum
    that the coalition sees, are those of an omniscient one, with any number of workers."""
    seen: list[Knowledge] = []

    def onlooker(knowledge: Knowledge, state: AttackState) -> Action:
        seen.append(knowledge)
        return Action(knowledge.updates)

    monkeypatch.setitem(ATTACKS, "label-flip", onlooker)
    keys: dict[str, Any] = {"attack__name": "label-flip", "client__block": 2, "data__num_clients": 13}
    clip, kind = Clip("l2", 0.5), "rows" if stacked else "sum"
    contents = [
        play(configure(**keys, attack__knowledge=level), Workers(count), clip=clip, stacked=stacked)[0].array_records[kind]
        for level, count in (("omniscient", 1), ("updates", workers))
    ]
    assert torch.equal(*(from_record(record)[kind] for record in contents))
    omniscient, shown = seen
    assert omniscient.shown is None
    assert shown.shown
    assert omniscient.seen
    assert shown.seen
    assert torch.equal(omniscient.seen.total, shown.seen.total)
    config = configure(**keys)
    federation, client = load_federation(config), replace_engine(config, "loop").client
    module = new_module(config, federation)
    honest_ids = [i for i in range(13) if i not in malicious_clients(config)]
    batches = [federation.cohort([i], 1, 1, config.client.batch_size) for i in honest_ids]
    expected = torch.cat([block_updates(FlatModel(module), flat_parameters(module), batch, client) for batch in batches])
    torch.testing.assert_close(shown.shown.rows, expected, rtol=1e-4, atol=1e-6)
    assert shown.shown.weights.tolist() == [weights_of(batch)[0] for batch in batches]


def test_the_coalition_is_shown_no_update_of_a_client_that_failed(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(attack__name="label-flip", attack__knowledge="updates", fault__raises="0")
    assert 0 not in malicious_clients(config)
    counts: list[int] = []

    def count(knowledge: Knowledge, state: AttackState) -> Action:
        assert knowledge.shown
        counts.append(len(knowledge.shown.rows))
        assert len(knowledge.shown.weights) == len(knowledge.shown.rows)
        return Action(knowledge.updates)

    monkeypatch.setitem(ATTACKS, "label-flip", count)
    play(config, Workers(2))
    assert counts == [12 - 2 - 1]
