"""Flower's own bytes for an update: a client's reply message and every object that the client pushes after it.

Flower has no sparse form. `dense` sends the update as tensors, `pairs` as two arrays, indices and values, as a user may
do by hand. HTTP and TLS are not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.common import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from update_server import serve, values

if TYPE_CHECKING:
    from update_server import Sample

NODE = Node(node_id=2**63 + 12345)
RUN_ID = 2**62 + 12345
SESSION = "5e55104e-5e55-104e-5e55-104e5e55104e"
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 12345
ASKED = Message(RecordDict(), NODE.node_id, "train", group_id="7")


def pushed(arrays: list[Any]) -> list[bytes]:
    """What the client sends for these arrays: the message, and one request for each object in it."""
    record = ArrayRecord({str(at): Array(array) for at, array in enumerate(arrays)})
    content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 100, "loss": 0.5})})
    reply = Message(content, reply_to=ASKED)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    announced = Message(RecordDict(), reply_to=ASKED)
    announced.metadata.__dict__["_message_id"] = reply.object_id
    first = PushMessagesRequest(
        node=NODE,
        messages_list=[message_to_proto(announced)],
        message_object_trees=[get_object_tree(reply)],
        clientapp_runtime_list=[1.25],
    )
    objects = get_all_nested_objects(reply)
    return [first.SerializeToString()] + [
        PushObjectRequest(
            node=NODE, run_id=RUN_ID, object_id=name, object_content=one.deflate(), session_id=SESSION
        ).SerializeToString()
        for name, one in objects.items()
    ]


def pulled(messages: list[bytes]) -> list[Any]:
    """The arrays in what was sent."""
    objects = {}
    for message in messages[1:]:
        request = PushObjectRequest.FromString(message)
        objects[request.object_id] = request.object_content
    reply = inflate_object_from_contents(request.object_id, objects)
    return reply.content["arrays"].to_numpy_ndarrays()


def dense(sample: Sample) -> list[bytes]:
    return pushed(sample.tensors())


def pairs(sample: Sample) -> list[bytes]:
    return pushed([sample.indices, sample.values])


if __name__ == "__main__":
    serve({
        "Flower, dense": (dense, lambda messages, _: pulled(messages), lambda sample: sample.tensors()),
        "Flower, pairs": (pairs, lambda messages, _: pulled(messages), values),
    })  # fmt: skip
