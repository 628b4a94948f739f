"""How many workers there are and where Ray puts them: the arithmetic of shares of GPUs, and Ray with declared GPUs (it needs none)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import pytest

from fl_sim.grid.gpu_shares import UNITS, equal_share, gpu_problem, places, workers_and_share


@pytest.mark.parametrize(
    ("share", "gpus", "expected"),
    [
        (0.5, [1], 2),
        (0.6, [2], 2),  # not 3: a share is of one GPU
        (1.0, [2, 1], 3),
        (2.0, [3, 1], 1),
        (1 / 3, [1], 3),
        (1 / 6, [1], 5),  # Ray rounds it to 0.1667
        (0.1666, [1], 6),
        (0.5, [0], 0),
        (0.5, [0.5], 1),
        (0.5, [], 0),
    ],
)
def test_how_many_workers_the_gpus_have_places_for(share: float, gpus: list[float], expected: int) -> None:
    assert places(share, gpus) == expected


@pytest.mark.parametrize("gpus", [[1], [2], [1, 2], [8, 8]])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 16, 33])
def test_equal_shares_fit(count: int, gpus: list[float]) -> None:
    """Three workers on two GPUs get halves, not thirds of two: Ray would never start the third."""
    share = equal_share(count, gpus)
    assert 0.0 < share <= 1.0
    assert places(share, gpus) >= count
    assert not gpu_problem(count, share, 8, gpus, "here")


def packed(count: int, share: float, gpus: Sequence[int]) -> bool:
    """Whether `count` actors fit, one after the other, each into the first GPU that has room, as Ray counts."""
    room = [UNITS] * sum(gpus)
    units = round(share * UNITS)
    for _ in range(count):
        gpu = next((i for i, free in enumerate(room) if free >= units), None)
        if gpu is None:
            return False
        room[gpu] -= units
    return True


@pytest.mark.parametrize("gpus", range(1, 17))
def test_every_default_fits_on_1_to_128_cores(gpus: int) -> None:
    for cores in range(1, 129):
        assert workers_and_share(0, 0.0, cores, [gpus], on_gpu=True) == (gpus, 1.0)
        assert workers_and_share(0, 0.0, cores, [gpus], on_gpu=False) == (cores, 0.0)
        count, share = workers_and_share(cores, 0.0, cores, [gpus], on_gpu=True)  # as many workers as cores
        assert count == cores
        assert packed(count, share, [gpus])
        if cores > gpus:
            assert not packed(count, share + 1 / UNITS, [gpus])  # it is the largest share
        assert not gpu_problem(count, share, cores, [gpus], "here")


@pytest.mark.parametrize("gpus", [[1, 2], [8, 1, 1], [0, 3]])
def test_the_default_on_nodes_with_unlike_gpus(gpus: list[int]) -> None:
    assert workers_and_share(0, 0.0, 16, gpus, on_gpu=True) == (sum(gpus), 1.0)
    assert workers_and_share(0, 0.25, 16, gpus, on_gpu=True) == (4 * sum(gpus), 0.25)
    for count in range(1, 40):
        assert packed(*workers_and_share(count, 0.0, 16, gpus, on_gpu=True), gpus)


def test_what_does_not_fit_names_cores_gpus_workers_and_share() -> None:
    problem = gpu_problem(4, 0.6, 16, [3], "the Ray cluster")
    expected = "expected ray.gpus-per-worker <= 0.5 (the Ray cluster: 16 cores and 3 GPUs have places for 3 such workers, not for 4; "
    assert problem == expected + "see --workers), got 0.6"


RUN = """
import time
import ray
from ray.cluster_utils import Cluster
from fl_sim.config.resolve import ConfigError
from fl_sim.grid import ray_workers
from fl_sim.grid.ray_workers import RayTransport
from fl_sim.waits import ProcessError

class Bare:  # an actor that imports nothing: only where it is put counts here
    def __init__(self, target, path):
        pass

    def ready(self):
        return True

ray_workers.actor_class = lambda: Bare

def joined(*nodes):
    cluster = Cluster()
    for cores, gpus in nodes:
        cluster.add_node(num_cpus=cores, num_gpus=gpus, include_dashboard=False, include_log_monitor=False, no_monitor=True)
    ray.init(address=cluster.address, log_to_driver=False)

def placed(workers, share=0.0):
    began = time.perf_counter()
    transport = RayTransport("clients.client_app:answer", workers, share, on_gpu=True)
    transport._reserve(1, None)
    print(transport.num_workers, f"{time.perf_counter() - began:.1f} s")
    return transport

def refused(kind, text, workers, share, start_timeout=120.0):
    began = time.perf_counter()
    try:
        RayTransport("clients.client_app:answer", workers, share, on_gpu=True, start_timeout=start_timeout)._reserve(1, None)
    except kind as error:
        assert text in str(error), error
        print(f"refused after {time.perf_counter() - began:.1f} s")
        return
    raise AssertionError("all workers were placed")
"""


def run_with(script: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fl-sim-", dir="/tmp") as folder:  # a short path: Ray's sockets are below it
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}
        command = [sys.executable, "-c", RUN + script + "\nray.shutdown()\n"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_nodes_with_unlike_gpus_and_workers_that_find_no_place() -> None:
    """Also 16 workers on 16 cores and 3 GPUs: GPUs over workers is 0.1875 there, with which Ray places 15."""
    run_with("""
joined((8, 1), (8, 2))
sixteen = placed(16)
assert sixteen.num_workers == 16
sixteen.close()
transport = placed(0)
assert transport.num_workers == 3
refused(ConfigError, "16 cores and 3 GPUs have places for 3 such workers, not for 4", 4, 0.6)
refused(ProcessError, "worker 0 did not start within 2 s (ray.start-timeout): the Ray cluster has 16 cores and 3 GPUs; "
        "each of 3 workers reserves 1 of a GPU, and 0 GPUs are free", 3, 1.0, start_timeout=2.0)
transport.close()
""")


@pytest.mark.slow
def test_a_cluster_without_gpus_for_a_server_with_one() -> None:
    run_with("""
joined((2, 0))
refused(ConfigError, "expected device to be 'cpu' (the Ray cluster: 2 cores and 0 GPUs)", 0, 0.0)
""")
