"""Write a model of dense layers, 16 MiB of seeded random weights, to the path given.

One row reads all weights once, as does a batch: what batching is for.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 1024
LAYERS = 4


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_dense.py <path of the ONNX file to write>")
    random = np.random.default_rng(3)
    nodes, weights, x = [], [], "image"
    for layer in range(LAYERS):
        weight = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) * np.float32(np.sqrt(2 / WIDTH))
        weights.append(numpy_helper.from_array(weight, f"weight{layer}"))
        nodes.append(helper.make_node("MatMul", [x, f"weight{layer}"], [f"product{layer}"]))
        x = "scores" if layer == LAYERS - 1 else f"relu{layer}"
        nodes.append(helper.make_node("Relu", [f"product{layer}"], [x]))
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    Path(sys.argv[1]).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
