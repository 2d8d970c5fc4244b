"""FedAvg as it comes, which notes whose results it averages and keeps the model on disk after every round.

Flower's own strategies keep the model in memory. That it is kept here, and taken up by a job that is started again, is
what a careful user would add.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from waiting.ledger import note

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flwr.app import Message

app = ServerApp()


class Noted(FedAvg):
    """FedAvg that writes down what it does."""

    def __init__(self, directory: str, first_round: int, devices: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
        self._directory = directory
        self._first = first_round

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Average, keep the model, then note each result that is in it."""
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        counted = [reply.content["metrics"]["training"] for reply in replies if reply.has_content()]
        if arrays is not None:
            fresh = Path(self._directory) / "fresh.npy"
            np.save(fresh, arrays.to_numpy_ndarrays()[0])
            fresh.replace(fresh.with_name("model.npy"))
        for training in counted if arrays is not None else ():
            note(self._directory, "counted", training=training)
        note(self._directory, "round", round=self._first + server_round - 1, results=len(counted))
        return arrays, metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, from the model on disk if there is one."""
    config = context.run_config
    directory = str(config["directory"])
    kept = Path(directory) / "model.npy"
    model = np.load(kept) if kept.exists() else np.zeros(int(config["params"]), np.float32)
    strategy = Noted(directory, int(config["first-round"]), int(config["devices"]))
    strategy.start(grid=grid, initial_arrays=ArrayRecord([model]), num_rounds=int(config["rounds"]))
    note(directory, "done")
