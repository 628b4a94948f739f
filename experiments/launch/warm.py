"""The two processes behind `experiments.launch.superlink`, run as a script: Flower's commands, imported ahead and side by side.

Each of ``flower-superlink``, ``flower-superexec``, ``flwr`` and ``flwr-simulation`` spends 3 to 4 s of processor time on nearly the same
imports, one after the other, and Ray then needs 8 more to start. Here one process imports once and forks the first two before it is the
third; the other imports the fourth and starts Ray meanwhile, and is the simulation as soon as SuperExec asks for one.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

HEALTHY, STATUS_FOLLOWS = "fl-sim: superlink is healthy", "fl-sim: status follows"
START_LIMIT = 120.0  # seconds until the SuperLink must answer; it needs 4 to 5 on idle cores


def console_script(name: str) -> Callable[[], Any]:
    """The imported function of an installed command."""
    (script,) = entry_points(group="console_scripts", name=name)
    return script.load()


def call(main: Callable[[], Any], name: str, arguments: Sequence[str]) -> int | str | None:
    """Call a command's function as its script would; the exit status, None or 0 if well."""
    sys.argv[:] = [name, *arguments]
    try:
        return main()
    except SystemExit as end:
        return end.code


def follow(parent: int) -> None:
    """End this process when its parent has ended, even by SIGKILL."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def start_service(name: str, arguments: Sequence[str], log: str) -> int:
    """Start a command that runs until it is ended, its output in ``log``; its process id."""
    if sys.platform != "linux":  # elsewhere system libraries do not survive a fork
        with open(log, "ab") as sink:
            return subprocess.Popen([Path(sys.executable).parent / name, *arguments], stdout=sink, stderr=sink).pid
    main, parent = console_script(name), os.getpid()
    if child := os.fork():
        return child
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    follow(parent)
    sys.exit(call(main, name, arguments))


def wait_until_healthy(port: int) -> None:
    """Return as soon as the SuperLink answers; raises TimeoutError."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)
        finally:
            connection.close()
    raise TimeoutError(f"the SuperLink did not answer on port {port} in {START_LIMIT:.0f} s")


def submit(parent: int, services: Sequence[tuple[str, Sequence[str]]], port: int, log: str, commands: Sequence[Sequence[str]]) -> None:
    """Start the services, wait until the SuperLink is healthy, run ``flwr`` with each list of arguments. Ends early when a service ends."""
    children = [start_service(name, arguments, log) for name, arguments in services]

    def child_ended(_number: int, _frame: object) -> None:
        for child in children:
            if os.waitpid(child, os.WNOHANG)[0]:
                os.write(1, b"the SuperLink or its SuperExec ended\n")
                os._exit(1)

    signal.signal(signal.SIGCHLD, child_ended)
    follow(parent)
    flwr = console_script("flwr")
    wait_until_healthy(port)
    print(HEALTHY, flush=True)
    for index, arguments in enumerate(commands):
        if index:
            print(STATUS_FOLLOWS, flush=True)
        if status := call(flwr, "flwr", arguments):
            sys.exit(status)


def simulate(parent: int, arguments_file: str, ray_cpus: int, app_dir: str, preload: Sequence[str]) -> None:
    """Import and start what a simulation needs, wait for the arguments that SuperExec gave to ``flwr-simulation``, and be it."""
    follow(parent)
    loaded: list[Callable[[], Any]] = []

    def load() -> None:
        loaded.append(console_script("flwr-simulation"))
        for module in preload:
            with suppress(ImportError):
                __import__(module)

    loading = threading.Thread(target=load)
    loading.start()
    # Ray's workers import the app from its own folder, as under a plain `flwr run .`.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [app_dir, os.environ.get("PYTHONPATH")]))
    if not os.environ.get("RAY_ADDRESS"):  # else Flower joins that cluster itself
        try:
            import ray

            # What Flower would do (`RayBackend.init_ray`), but now, and not in a cluster that somebody else started on this machine.
            ray.init("local", num_cpus=ray_cpus, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=True)
        except Exception:  # Flower will try again, and its error reaches the run's log
            traceback.print_exc()
    loading.join()
    while not Path(arguments_file).exists():
        time.sleep(0.02)
    sys.exit(call(loaded[0], "flwr-simulation", Path(arguments_file).read_text(encoding="utf-8").split()))


if __name__ == "__main__":
    {"submit": submit, "simulate": simulate}[sys.argv[1]](**json.loads(sys.argv[2]))
