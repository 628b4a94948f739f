"""A strategy of ByzFL or Flower tried once on random vectors, before a run: does it give a result, and does it act at all?"""

from __future__ import annotations

import logging
from typing import NamedTuple, cast

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor, nn

from fl_sim.config.keys import Config
from fl_sim.data.batches import Batch
from fl_sim.grid.grid import ClientGrid
from fl_sim.grid.transports import InlineTransport, claim_identity
from fl_sim.model.flat_model import FlatModel
from fl_sim.outside_code import OutsideCodeError
from fl_sim.wire.arrays import to_record
from fl_sim.wire.messages import Order, Reply
from strategies.byzfl_rules import PRE_AGGREGATORS, ByzflCombine
from strategies.flower_host import FlowerHost, core_of, makes_own_step
from strategies.guarantees import subsets
from strategies.own_rule import OwnCombine, ServerInputs
from strategies.robust.catalogue import ROBUST
from strategies.rule import CannotCombineError

SIZE = 8  # numbers in a vector
LONG = 1000.0  # how many times as long as the others one vector is
LARGE_TRIAL = 500  # subsets that a rule goes through: with more it is not tried


class Trial(NamedTuple):
    """What is wrong with a strategy, as a sentence, empty if nothing; and how many of the sampled clients it asks."""

    problem: str
    asked: int


def vectors(n: int) -> Tensor:
    """n random vectors (n, SIZE), one of them LONG times as long as the others."""
    rows = torch.randn(n, SIZE, generator=torch.Generator().manual_seed(n))
    rows[n // 2] *= LONG
    return rows


def try_byzfl(combine: ByzflCombine, n: int) -> str:
    """What is wrong with a combination for n clients; empty if nothing. `combine` is used up: it must not be that of a run."""
    rows, f = vectors(n), int(combine.options.get("f", 0))
    if max(subsets(part, n, f) for part, _ in combine.stages) > LARGE_TRIAL:
        return ""
    combine.trusted = rows.mean(dim=0)
    try:
        combined = combine(rows, torch.ones(n), torch.arange(n))
    except CannotCombineError as error:
        return str(error)
    if problem := _inaction(combined, rows, exempt=combine.name == "Average"):
        return problem
    for part, stage in combine.stages:
        if part in PRE_AGGREGATORS and _same_rows(stage(rows.clone()), rows):
            return f"its part {part} leaves every update as it is"
    return ""


def trial_inputs(n: int) -> ServerInputs:
    """Stand-ins for what the server gives to a rule: a linear model with SIZE parameters, a few examples, and the update that most clients
    would agree with."""
    generator = torch.Generator().manual_seed(n)
    model = FlatModel(nn.Linear(SIZE // 2 - 1, 2))
    batch = Batch(torch.randn(4, SIZE // 2 - 1, generator=generator), torch.tensor([0, 1, 0, 1]))
    theta = torch.randn(SIZE, generator=generator)
    given = {
        "theta": theta,
        "model": model,
        "server_data": batch,
        "server_update": vectors(n).mean(dim=0),
        "server_lr": 0.1,
        "server_momentum": 0.9,
        "client_lr": 0.1,
    }
    return {name: lambda _, value=value: value for name, value in given.items()}


def try_function(combine: OwnCombine, n: int) -> str:
    """What is wrong with a published defence for n clients; empty if nothing. `combine` is used up: it must not be that of a run. Raises
    OptionError."""
    rows = vectors(n)
    try:
        return _inaction(combine(rows, torch.ones(n), torch.arange(n)), rows, exempt=not ROBUST[combine.name].at_once)
    except CannotCombineError:  # of random vectors it may leave nobody
        return ""


def try_flower(strategy: Strategy, config: Config) -> Trial:
    """What is wrong with a strategy for the sampled clients. `strategy` is used up: it must not be that of a run."""
    n = config.clients_per_round
    rows, theta = vectors(n), torch.zeros(SIZE)
    host = FlowerHost(strategy, theta, config, {"weights": torch.Size([SIZE])}, lambda _: range(n))
    claim_identity()
    logger = logging.getLogger("flwr")
    logger.disabled = True
    try:
        messages = list(host.configure_train(1, to_record({"theta": theta}), ConfigRecord({"phase": ""}), _no_grid(config)))
        if not messages:
            return Trial("it asks no client", 0)
        clients = cast(list[int], messages[0].content.config_records["config"]["clients"])
        content = {"clients": ConfigRecord({"ids": clients, "weights": [1.0] * len(clients), "norms": [0.0] * len(clients)})}
        rows = rows[clients]
        host.aggregate_train(1, [Message(RecordDict({**content, "rows": to_record({"rows": rows})}), reply_to=messages[0])])
    except OutsideCodeError as error:
        return Trial(str(error).partition("\n")[0], 0)  # without the traceback
    except Exception as error:  # somebody else's code raises what it likes
        return Trial(f"{type(error).__name__}: {error}", 0)
    finally:
        logger.disabled = False
    if host.skipped:
        return Trial(host.skipped, len(clients))
    exempt = makes_own_step(strategy) or type(strategy) is FedAvg
    combined = host.state.velocity if not makes_own_step(strategy) and config.strategy.optimiser == "server" else -host.theta
    return Trial(_inaction(combined, rows, exempt=exempt), len(clients))


def try_inner(strategy: Strategy, config: Config) -> Trial:
    """`try_flower`, of a DP wrapper also of the strategy inside it."""
    trial, core = try_flower(strategy, config), core_of(strategy)
    if trial.problem or core is strategy:
        return trial
    problem, asked = try_flower(core, config)
    return Trial(problem and f"{type(core).__name__} inside it: {problem}", asked)


def _inaction(combined: Tensor, rows: Tensor, *, exempt: bool) -> str:
    """Why a combination (d,) of rows (n, d) is no defence, empty if it may be one. `exempt`: it is a mean by its name."""
    if not bool(combined.any()):
        return "it never moves the model"
    mean, length = rows.mean(dim=0), torch.linalg.vector_norm(rows.mean(dim=0))
    if not exempt and bool(torch.linalg.vector_norm(combined - mean) < 1e-4 * length):
        return f"it combines {len(rows)} updates as the plain mean does, also if one is {LONG:g} times as long: it leaves out nobody"
    return ""


def _same_rows(rows: Tensor, others: Tensor) -> bool:
    """Whether two stacks hold the same rows, in whatever order."""
    return rows.shape == others.shape and torch.equal(rows[rows[:, 0].argsort()], others[others[:, 0].argsort()])


def _no_grid(config: Config) -> ClientGrid:
    """A grid whose workers are not there."""
    return ClientGrid(InlineTransport(_nobody), config.model_copy(update={"device": "cpu"}), torch.zeros(0))


def _nobody(_: Order) -> Reply:
    raise RuntimeError("a trial asks no worker")
