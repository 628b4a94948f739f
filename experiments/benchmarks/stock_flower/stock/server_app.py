"""The ServerApp. It writes down when each round began and ended, and how long its clients trained."""

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp, strategy

from stock.task import new_model

app = ServerApp()


def timed(base):
    class Timed(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.lines = []

        def configure_train(self, *args, **kwargs):
            self.began = time.time()
            return super().configure_train(*args, **kwargs)

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            compute = sum(float(reply.content["metrics"]["compute"]) for reply in replies if reply.has_content())
            received = time.time()
            result = super().aggregate_train(server_round, replies)
            ended = time.time()
            line = {"began": self.began, "ended": ended, "compute": compute, "aggregate": ended - received, "replies": len(replies)}
            self.lines.append(line)
            return result

    return Timed


@app.main()
def main(grid: Grid, context: Context) -> None:
    torch.set_num_threads(1)
    config = context.run_config
    clients = int(config["clients"])
    base = getattr(strategy, str(config["strategy"]))
    chosen = timed(base)(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    initial = ArrayRecord(new_model(config).state_dict())
    chosen.start(grid=grid, initial_arrays=initial, train_config=ConfigRecord(), num_rounds=int(config["num-server-rounds"]))
    Path(str(config["times"])).write_text(json.dumps(chosen.lines), encoding="utf-8")
