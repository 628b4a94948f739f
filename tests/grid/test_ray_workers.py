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
import psutil
import ray
import torch
from ray.cluster_utils import Cluster
from fl_sim.grid.ray_workers import RayTransport
from fl_sim.grid.transports import claim_identity
from fl_sim.wire.messages import Order

def ask(count, avoid=None):
    order = Order(torch.zeros(1), torch.zeros(0), "{}", 1, 0, ())
    return transport.exchange([order] * count, avoid=avoid)

claim_identity()
"""

PLACED = """
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=5)
ray.init(address=cluster.address, log_to_driver=False)
transport = RayTransport("tests.grid.test_ray_workers:tell", 0, 0.0)
nodes = [node for answer in ask(6) for node in answer.reply.retry.values()]
assert nodes.count(second.node_id) == 5, nodes
ray.shutdown()
cluster.shutdown()
"""

LOST = """
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
transport = RayTransport("tests.grid.test_ray_workers:tell", 4, 0.0)
pids = [pid for answer in ask(4) for pid in answer.reply.retry]
assert len(set(pids)) == 4
for pid in pids[:3]:
    os.kill(pid, signal.SIGKILL)
psutil.wait_procs([psutil.Process(pid) for pid in pids[:3] if psutil.pid_exists(pid)], timeout=10)
(first,) = ask(1)
assert first.reply is None and first.failure == "worker 0 died" and first.worker is None, first
again = ask(4, avoid=first.worker)
assert all(answer.reply for answer in again), again
assert list(again[3].reply.retry) == [pids[3]]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [PLACED, LOST], ids=["every-cpu-of-two-nodes-has-a-worker", "who-asks-after-a-death-does-not-meet-the-next-dead-worker"]
)
def test_workers_in_a_process_of_their_own(script: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fl-sim-", dir="/tmp") as folder:  # a short path: Ray's sockets are below it
        # In its own folder, because a Cluster tells all of Ray on this machine to join it.
        environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", ASK + script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
