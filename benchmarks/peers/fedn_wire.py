"""FEDn's own bytes for an update: its NumPy helper's compressed .npz, in the requests that its client streams.

FEDn has no sparse form. `dense` sends the update as tensors, zeros and all, which its deflate then shrinks; `pairs` as
two arrays, indices and values, as a user may do by hand. HTTP/2 and TLS are not counted.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import fedn.network.grpc.fedn_pb2 as fedn
from fedn.network.combiner.modelservice import upload_request_generator
from fedn.utils.helpers.plugins.numpyhelper import Helper
from update_server import serve, values

if TYPE_CHECKING:
    from update_server import Sample

MODEL_ID = "5e55104e-5e55-104e-5e55-104e5e55104e"
HELPER = Helper()


def streamed(arrays: list[Any]) -> list[bytes]:
    """What the client sends for these arrays."""
    file = BytesIO()
    HELPER.save(arrays, file)
    file.seek(0)
    return [request.SerializeToString() for request in upload_request_generator(file, MODEL_ID)]


def collected(messages: list[bytes]) -> list[Any]:
    """The arrays in what was sent."""
    return HELPER.load(BytesIO(b"".join(fedn.ModelRequest.FromString(message).data for message in messages)))


def dense(sample: Sample) -> list[bytes]:
    return streamed(sample.tensors())


def pairs(sample: Sample) -> list[bytes]:
    return streamed([sample.indices, sample.values])


if __name__ == "__main__":
    serve({
        "FEDn, dense": (dense, lambda messages, _: collected(messages), lambda sample: sample.tensors()),
        "FEDn, pairs": (pairs, lambda messages, _: collected(messages), values),
    })  # fmt: skip
