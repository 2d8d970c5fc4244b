"""A device whose training is a pause of `train-s` seconds, and whose result has a number of its own."""

from __future__ import annotations

import os
import time

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from waiting.ledger import note

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Pause, note that the work is finished, and hand it over."""
    directory = str(context.run_config["directory"])
    round_id = int(context.run_config["first-round"]) + message.content["config"]["server-round"] - 1
    training = int.from_bytes(os.urandom(6), "little")
    me = {"device": context.node_config["device"], "round": round_id, "training": training}
    note(directory, "training", **me)
    time.sleep(float(context.node_config["train-s"]))
    arrays = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1, "training": training})
    result = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    note(directory, "finished", **me)
    return Message(content=result, reply_to=message)
