"""LiteRT as a peer: the training signature that TensorFlow's converter wrote, run by LiteRT alone.

VARIANT is the directory that `tensor_flow.py export:` filled. The converter has no builtin operator for the gradient
of a convolution, so only models whose trained part is dense can be had.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(path: str, first: int, variant: str) -> None:
    """Measure one network in one mode."""
    began = time.process_time()
    from ai_edge_litert.interpreter import Interpreter

    import_s = time.process_time() - began
    import network

    net = network.load(path, first)
    train = Interpreter(str(Path(variant) / "train.tflite"), num_threads=1).get_signature_runner("train")
    network.report(import_s, lambda: train(x=net.x, y=net.y)["loss"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
