"""Ray actors: where they are put, and that they die several at once, as when their node is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest
import ray

from fl_sim.grid.ray_workers import spread
from fl_sim.wire.messages import Order, Reply


@pytest.mark.parametrize(
    ("count", "cpus", "expected"),
    [
        (4, {"head": 1, "second": 1}, ["head", "second", "head", "second"]),
        (6, {"head": 4, "second": 8}, ["second", "head", "second", "second", "head", "second"]),
        (2, {"head": 0, "second": 2}, ["second", "second"]),
        (2, {"head": 0}, ["head", "head"]),
    ],
)
def test_the_workers_are_spread_over_the_nodes_by_their_cpus(count: int, cpus: dict[str, float], expected: list[str]) -> None:
    assert spread(count, cpus) == expected


def tell(order: Order) -> Reply:
    """A worker that answers with its process and its node."""
    return Reply({}, {}, {}, {os.getpid(): ray.get_runtime_context().get_node_id()})


ASK = """
import os, signal
from collections import Counter
import psutil
import ray
import torch
from ray.cluster_utils import Cluster
from fl_sim.grid.ray_workers import RayTransport, spread
from fl_sim.grid.transports import claim_identity
from fl_sim.wire.messages import Order

def ask(count, avoid=None):
    order = Order(torch.zeros(1), torch.zeros(0), "{}", 1, 0, ())
    return transport.exchange([order] * count, avoid=avoid)

claim_identity()
"""

PLACED = """
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False})
second = cluster.add_node(num_cpus=3, include_log_monitor=False)
ray.init(address=cluster.address, log_to_driver=False)
transport = RayTransport("tests.grid.test_ray_workers:tell", 0, 0.0)
cpus = {cluster.head_node.node_id: 1, second.node_id: 3}
first = ask(4)
found = [node for answer in first for node in answer.reply.retry.values()]
assert Counter(found) == Counter(spread(4, cpus)) == cpus, (found, cpus)  # of equal nodes, Ray may name either first
"""

LOST = """
pids = [pid for answer in first for pid in answer.reply.retry]
assert len(set(pids)) == 4
for pid in pids[:3]:
    os.kill(pid, signal.SIGKILL)
psutil.wait_procs([psutil.Process(pid) for pid in pids[:3] if psutil.pid_exists(pid)], timeout=10)
(dead,) = ask(1)
assert dead.reply is None and dead.failure == "worker 0 died" and dead.worker is None, dead
again = ask(4, avoid=dead.worker)
assert all(answer.reply for answer in again), again
assert list(again[3].reply.retry) == [pids[3]]
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_every_cpu_of_two_nodes_has_a_worker_and_who_asks_after_a_death_does_not_meet_the_next_dead_worker() -> None:
    """In a process of its own: both claims, one after the other, on one cluster."""
    with tempfile.TemporaryDirectory(prefix="fl-sim-", dir="/tmp") as folder:  # a short path: Ray's sockets are below it
        # In its own folder, because a Cluster tells all of Ray on this machine to join it.
        environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", ASK + PLACED + LOST], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
