"""Write a MobileNetV2 with seeded random weights to the path given: as large and slow as the real one, and as sane."""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Expansion, output channels, repeats and first stride of each stage, from the MobileNetV2 paper's table 2.
STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class Graph:
    """Nodes and weights as they are added; every layer returns the name of its output."""

    def __init__(self):
        self.random = np.random.default_rng(2)
        self.nodes = []
        self.weights = []

    def weight(self, name, values):
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, operator, inputs, output, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def conv(self, x, name, channels_in, channels, kernel=1, stride=1, groups=1, relu=True):
        """A convolution with its batch normalisation folded in, and ReLU6 unless told otherwise."""
        shape = (channels, channels_in // groups, kernel, kernel)
        # A ReLU halves the energy that passes it: the factor 2 of He keeps activations near 1.
        scale = np.sqrt((2 if relu else 1) / np.prod(shape[1:]))
        weight = self.weight(f"{name}.weight", self.random.standard_normal(shape) * scale)
        bias = self.weight(f"{name}.bias", self.random.standard_normal(channels) * 0.1)
        pads = [kernel // 2] * 4
        y = self.node(
            "Conv", [x, weight, bias], f"{name}.conv", group=groups, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2
        )
        return self.node("Clip", [y, "zero", "six"], f"{name}.relu") if relu else y

    def block(self, x, name, channels_in, channels, expansion, stride):
        """An inverted residual: widen, filter each channel by itself, narrow."""
        wide = channels_in * expansion
        y = x if expansion == 1 else self.conv(x, f"{name}.expand", channels_in, wide)
        y = self.conv(y, f"{name}.depthwise", wide, wide, kernel=3, stride=stride, groups=wide)
        y = self.conv(y, f"{name}.project", wide, channels, relu=False)
        return self.node("Add", [x, y], f"{name}.sum") if stride == 1 and channels_in == channels else y


def mobilenet():
    graph = Graph()
    graph.weight("zero", np.array(0))
    graph.weight("six", np.array(6))
    x, channels = graph.conv("image", "stem", 3, 32, kernel=3, stride=2), 32
    for stage, (expansion, width, repeats, first_stride) in enumerate(STAGES):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = graph.block(x, f"stage{stage}.{repeat}", channels, width, expansion, stride)
            channels = width
    x = graph.conv(x, "head", channels, 1280)
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Flatten", [x], "flat", axis=1)
    weight = graph.weight("dense.weight", graph.random.standard_normal((1000, 1280)) / np.sqrt(1280))
    bias = graph.weight("dense.bias", np.zeros(1000))
    x = graph.node("Gemm", [x, weight, bias], "logits", transB=1)
    graph.node("Softmax", [x], "scores", axis=1)
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "mobilenet",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1000])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_mobilenet.py <path of the ONNX file to write>")
    model = mobilenet()
    onnx.checker.check_model(model, full_check=True)
    Path(sys.argv[1]).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
