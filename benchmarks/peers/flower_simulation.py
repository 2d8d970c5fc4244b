"""Flower's simulator with a training that does nothing: devices, rounds and parameters from the command line.

    python flower_simulation.py DEVICES ROUNDS PARAMS

Prints one JSON object: {"round_s": [...]}, the seconds of each round from its begin to the averaged model. Starting Ray
is in the first of them. Flower's own log goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

if TYPE_CHECKING:
    from collections.abc import Iterable

CPUS = 2
client, server = ClientApp(), ServerApp()
round_s: list[float] = []


@client.train()
def train(message: Message, _context: Context) -> Message:
    """Send back what came."""
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes when each round has its model."""

    began = 0.0

    def configure_train(self, *arguments: Any) -> Iterable[Message]:
        """Everyone trains; the round begins."""
        self.began = time.monotonic()
        return super().configure_train(*arguments)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Average, and stop the clock."""
        made = super().aggregate_train(server_round, replies)
        round_s.append(time.monotonic() - self.began)
        return made


@server.main()
def main(grid: Grid, _context: Context) -> None:
    """Run the rounds with everyone in each."""
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(params, np.float32)]), num_rounds=rounds)


if __name__ == "__main__":
    devices, rounds, params = map(int, sys.argv[1:4])
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    resources = {"init_args": {"num_cpus": CPUS}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    with contextlib.redirect_stdout(sys.stderr):
        run_simulation(server, client, devices, backend_config=resources)
    print(json.dumps({"round_s": round_s}))
