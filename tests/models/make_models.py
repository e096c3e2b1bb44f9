"""Make the tiny ONNX models of this folder: plain ones for every tensor type, and hostile ones."""

import random
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent

IDENTITY_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}

value = helper.make_tensor_value_info
node = helper.make_node


def ints(name, *numbers):
    """An initializer of rank 1 with 64-bit integers, as shapes and axes are given."""
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def model_bytes(name, nodes, inputs, outputs, initializers=()):
    """A model at opset 17 and IR version 8 without metadata, in bytes that never vary."""
    graph = helper.make_graph(nodes, name, inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(deterministic=True)


def checked(name, nodes, inputs, outputs, initializers=()):
    """As `model_bytes`, for models that are meant to be valid."""
    data = model_bytes(name, nodes, inputs, outputs, initializers)
    onnx.checker.check_model(data, full_check=True)
    return data


def identity(name, dtype):
    return checked(name, [node("Identity", ["x"], ["y"])], [value("x", dtype, ["n"])], [value("y", dtype, ["n"])])


def binary_int64(name, operator, output):
    inputs = [value("a", TensorProto.INT64, ["n"]), value("b", TensorProto.INT64, ["n"])]
    return checked(name, [node(operator, ["a", "b"], [output])], inputs, [value(output, TensorProto.INT64, ["n"])])


def two_outputs():
    return checked(
        "two_outputs",
        [node("Add", ["x", "x"], ["double"]), node("ArgMax", ["x"], ["argmax"], axis=1, keepdims=0)],
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("double", TensorProto.FLOAT, ["batch", 4]), value("argmax", TensorProto.INT64, ["batch"])],
    )


def dynamic_seq():
    """Row i of the table is i + column / 8, so that every mean can be told by hand."""
    table = np.arange(100, dtype=np.float32)[:, None] + np.arange(8, dtype=np.float32) / 8
    return checked(
        "dynamic_seq",
        [
            node("Gather", ["table", "ids"], ["rows"], axis=0),
            node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        ],
        [value("ids", TensorProto.INT64, ["batch", "seq"])],
        [value("mean", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(table, "table")],
    )


def loop_forever():
    body = helper.make_graph(
        [node("Identity", ["keep_going"], ["still_going"]), node("Neg", ["before"], ["after"])],
        "body",
        [
            value("trip", TensorProto.INT64, []),
            value("keep_going", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, [1]),
        ],
        [value("still_going", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, [1])],
    )
    return checked(
        "loop_forever",
        [node("Loop", ["trips", "go", "x"], ["y"], body=body)],
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(np.array(2**62, np.int64), "trips"),
            numpy_helper.from_array(np.array(True), "go"),
        ],
    )


def loop_rounds():
    """As `loop_forever`, with the caller's number of rounds: 1 after an even number, -1 after an odd one."""
    body = helper.make_graph(
        [node("Identity", ["keep_going"], ["still_going"]), node("Neg", ["before"], ["after"])],
        "body",
        [
            value("trip", TensorProto.INT64, []),
            value("keep_going", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, [1]),
        ],
        [value("still_going", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, [1])],
    )
    return checked(
        "loop_rounds",
        [
            node("Squeeze", ["rounds"], ["trips"]),
            node("Loop", ["trips", "go", "one"], ["y"], body=body),
        ],
        [value("rounds", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(np.array(True), "go"),
            numpy_helper.from_array(np.array([1], np.float32), "one"),
        ],
    )


def slow(size=512, products=240):
    """Multiplies a matrix filled with x by one that averages rows, again and again: the answer is x.

    The averaging matrix is a softmax of the input, so that no optimiser can compute anything ahead
    and no backend packs a copy of a constant for each of the nodes.
    """
    nodes = [node("Expand", ["x", "shape"], ["m0"]), node("Softmax", ["m0"], ["average"], axis=1)]
    nodes += [node("MatMul", [f"m{i}", "average"], [f"m{i + 1}"]) for i in range(products)]
    nodes += [
        node("ReduceMean", [f"m{products}"], ["mean"], axes=[0, 1], keepdims=0),
        node("Reshape", ["mean", "one"], ["y"]),
    ]
    return checked(
        "slow",
        nodes,
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        [ints("shape", size, size), ints("one", 1)],
    )


def bad_external():
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in {"location": "../../etc/passwd", "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=text)
    return model_bytes(
        "bad_external",
        [node("Add", ["x", "weight"], ["y"])],
        [value("x", TensorProto.FLOAT, [4])],
        [value("y", TensorProto.FLOAT, [4])],
        [weight],
    )


def huge_constant():
    return model_bytes(
        "huge_constant",
        [node("ConstantOfShape", ["shape"], ["huge"]), node("Add", ["x", "huge"], ["y"])],
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [10**12])],
        [ints("shape", 10**12)],
    )


def unknown_op():
    x, y = value("x", TensorProto.FLOAT, ["n"]), value("y", TensorProto.FLOAT, ["n"])
    return model_bytes("unknown_op", [node("Frobnicate", ["x"], ["y"])], [x], [y])


def negative_dim():
    x, y = value("x", TensorProto.FLOAT, [-5, 4]), value("y", TensorProto.FLOAT, [-5, 4])
    return model_bytes("negative_dim", [node("Identity", ["x"], ["y"])], [x], [y])


def varint(number):
    """An unsigned integer as protobuf writes it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(field, content):
    """A length-delimited protobuf field."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def deep(levels=20_000):
    """Graphs inside attributes inside nodes inside graphs, written by hand: the libraries refuse to."""
    content = b""
    # GraphProto.node = 1, NodeProto.attribute = 5, AttributeProto.g = 6
    for _ in range(levels // 3):
        content = message(1, message(5, message(6, content)))
    outer = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    return outer.SerializeToString(deterministic=True) + message(7, content)


def main():
    models = {f"identity_{name}": identity(name, dtype) for name, dtype in IDENTITY_TYPES.items()}
    models |= {
        "add": binary_int64("add", "Add", "sum"),
        "divide": binary_int64("divide", "Div", "quotient"),
        "two_outputs": two_outputs(),
        "dynamic_seq": dynamic_seq(),
        "loop_forever": loop_forever(),
        "loop_rounds": loop_rounds(),
        "slow": slow(),
        "bad_external": bad_external(),
        "huge_constant": huge_constant(),
        "unknown_op": unknown_op(),
        "negative_dim": negative_dim(),
        "deep": deep(),
        "garbage": random.Random(2).randbytes(4096),
        "empty": b"",
    }
    models["truncated"] = models["dynamic_seq"][: len(models["dynamic_seq"]) // 2]
    for name, data in models.items():
        (HERE / f"{name}.onnx").write_bytes(data)


if __name__ == "__main__":
    main()
