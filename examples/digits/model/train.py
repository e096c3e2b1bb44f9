"""Train the digits network on scikit-learn's bundled data; write the ONNX model and the held-out images."""

import os

# Sums in another order give other weights: one thread keeps the bytes the same from run to run.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent
HELD_OUT = EXAMPLE / "testdata" / "heldout"

SEED = 7
HELD_OUT_IMAGES = 360
SEVEN_ROW = 1275
EPOCHS = 50
BATCH = 32


def to_bytes(images):
    """Grey bytes 0..255 from the data set's 0..16, rounded: the only scale that a PNG knows."""
    return np.rint(images * (255 / 16)).astype(np.uint8)


def load_split():
    """The same split on every run: training and held-out images as bytes, labels, row numbers."""
    images, labels = load_digits(return_X_y=True)
    images = to_bytes(images).reshape(-1, 8, 8)
    rows = np.arange(len(labels))
    train, held_out = train_test_split(
        rows, test_size=HELD_OUT_IMAGES, stratify=labels, random_state=SEED
    )
    held_out.sort()
    return images[train], labels[train], images[held_out], labels[held_out], held_out


def augment(images, random):
    """Shift by up to one pixel and change contrast and background, as real uploads do."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    out = np.empty_like(images)
    # Half of the images stay where they are: the data set centres its digits.
    shifts = random.integers(0, 3, size=(len(images), 2))
    shifts[random.random(len(images)) < 0.5] = 1
    for i, (dy, dx) in enumerate(shifts):
        out[i] = padded[i, dy : dy + 8, dx : dx + 8]
    low = random.uniform(0, 0.15, size=(len(images), 1, 1)).astype(np.float32)
    high = random.uniform(0.75, 1, size=(len(images), 1, 1)).astype(np.float32)
    return low + out * (high - low)


def patches(x):
    """Every 3x3 neighbourhood of [batch,channels,h,w], zero padded, as rows [batch*h*w, channels*9]."""
    batch, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * height * width, channels * 9)


def convolve(x, weight, bias):
    """A 3x3 convolution with padding 1; also its patches, which the backward pass needs."""
    batch, _, height, width = x.shape
    rows = patches(x)
    y = rows @ weight.reshape(len(weight), -1).T + bias
    return y.reshape(batch, height, width, -1).transpose(0, 3, 1, 2), rows


def convolve_backward(dy, rows, weight):
    """Gradients of `convolve` for its input, weight and bias."""
    dy_rows = dy.transpose(0, 2, 3, 1).reshape(-1, len(weight))
    dweight = (dy_rows.T @ rows).reshape(weight.shape)
    # The input's gradient is a convolution with the kernel turned by 180 degrees.
    turned = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    dx, _ = convolve(dy, turned, np.zeros(len(turned), np.float32))
    return dx, dweight, dy_rows.sum(0)


def initial_weights(random):
    """He initialisation: conv 1->16, conv 16->32, dense 512->64, dense 64->10."""
    shapes = {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "dense1": (64, 512), "dense2": (10, 64)}
    weights = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{name}.weight"] = (random.standard_normal(shape) * scale).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return weights


def forward(weights, x):
    """Logits [batch,10], and what the backward pass needs."""
    y1, rows1 = convolve(x, weights["conv1.weight"], weights["conv1.bias"])
    a1 = np.maximum(y1, 0)
    y2, rows2 = convolve(a1, weights["conv2.weight"], weights["conv2.bias"])
    a2 = np.maximum(y2, 0)
    blocks = a2.reshape(len(x), 32, 4, 2, 4, 2)
    pooled = blocks.max(axis=(3, 5))
    flat = pooled.reshape(len(x), -1)
    a3 = np.maximum(flat @ weights["dense1.weight"].T + weights["dense1.bias"], 0)
    logits = a3 @ weights["dense2.weight"].T + weights["dense2.bias"]
    return logits, (rows1, a1, rows2, a2, pooled, flat, a3)


def gradients(weights, x, labels):
    """Gradients of the mean cross entropy for every weight."""
    logits, (rows1, a1, rows2, a2, pooled, flat, a3) = forward(weights, x)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    dlogits = exp / exp.sum(1, keepdims=True)
    dlogits[np.arange(len(x)), labels] -= 1
    dlogits /= len(x)

    da3 = (dlogits @ weights["dense2.weight"]) * (a3 > 0)
    dpooled = (da3 @ weights["dense1.weight"]).reshape(pooled.shape)
    is_max = a2.reshape(len(x), 32, 4, 2, 4, 2) == pooled[:, :, :, None, :, None]
    dy2 = (is_max * dpooled[:, :, :, None, :, None]).reshape(a2.shape) * (a2 > 0)
    da1, dconv2, dbias2 = convolve_backward(dy2, rows2, weights["conv2.weight"])
    _, dconv1, dbias1 = convolve_backward(da1 * (a1 > 0), rows1, weights["conv1.weight"])
    return {
        "conv1.weight": dconv1,
        "conv1.bias": dbias1,
        "conv2.weight": dconv2,
        "conv2.bias": dbias2,
        "dense1.weight": da3.T @ flat,
        "dense1.bias": da3.sum(0),
        "dense2.weight": dlogits.T @ a3,
        "dense2.bias": dlogits.sum(0),
    }


def train(images, labels, random):
    """Adam with a cosine learning rate and a little weight decay."""
    weights = initial_weights(random)
    mean = {name: np.zeros_like(w) for name, w in weights.items()}
    square = {name: np.zeros_like(w) for name, w in weights.items()}
    steps = EPOCHS * (len(images) // BATCH)
    step = 0
    while step < steps:
        order = random.permutation(len(images))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[first : first + BATCH]
            x = augment(images[chosen] / np.float32(255), random)[:, None]
            rate = np.float32(2e-3 * 0.5 * (1 + np.cos(np.pi * step / steps)))
            step += 1
            for name, grad in gradients(weights, x, labels[chosen]).items():
                mean[name] += np.float32(0.1) * (grad - mean[name])
                square[name] += np.float32(0.001) * (grad * grad - square[name])
                unbiased_mean = mean[name] / np.float32(1 - 0.9**step)
                unbiased_square = square[name] / np.float32(1 - 0.999**step)
                weights[name] -= rate * (
                    unbiased_mean / (np.sqrt(unbiased_square) + np.float32(1e-7))
                    + np.float32(1e-2) * weights[name]
                )
    return weights


def write_onnx(weights, path):
    """The trained network as standard ai.onnx operators: image [batch,1,8,8] -> scores [batch,10]."""
    nodes = [
        helper.make_node("Conv", ["image", "conv1.weight", "conv1.bias"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "conv2.weight", "conv2.bias"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "dense1.weight", "dense1.bias"], ["d1"], transB=1),
        helper.make_node("Relu", ["d1"], ["r3"]),
        helper.make_node("Gemm", ["r3", "dense2.weight", "dense2.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_held_out(images, labels, rows):
    """One 8x8 grey PNG an image, named for its row in the data set and its label."""
    HELD_OUT.mkdir(parents=True, exist_ok=True)
    for old in HELD_OUT.glob("*.png"):
        old.unlink()
    for image, label, row in zip(images, labels, rows, strict=True):
        Image.fromarray(image).save(HELD_OUT / f"{row:04d}_{label}.png", optimize=True)


def write_seven(images, rows):
    """A held-out seven that a person reads as one too: 64x64, in colour."""
    grey = Image.fromarray(images[list(rows).index(SEVEN_ROW)]).resize((64, 64), Image.Resampling.BICUBIC)
    light = np.asarray(grey, np.float32)[:, :, None] / 255
    paper, ink = np.array([12, 18, 44]), np.array([255, 236, 190])
    Image.fromarray(np.rint(paper + light * (ink - paper)).astype(np.uint8)).save(
        EXAMPLE / "seven.png", optimize=True
    )


def main():
    images, labels, held_images, held_labels, held_rows = load_split()
    weights = train(images, labels, np.random.default_rng(SEED))
    write_onnx(weights, HERE / "digits.onnx")
    write_held_out(held_images, held_labels, held_rows)
    write_seven(held_images, held_rows)


if __name__ == "__main__":
    main()
