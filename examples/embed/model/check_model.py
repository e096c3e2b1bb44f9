"""Compare a minilm.onnx with reference.json on ONNX Runtime and OpenVINO, and time it."""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import openvino

REFERENCE = json.loads((Path(__file__).resolve().parent / "reference.json").read_text())


def inputs(rows):
    """Token rows padded on the right to the longest of them."""
    length = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), length), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def on_onnxruntime(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(["sentence_embedding"], given)[0]


def on_openvino(path):
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def run(given):
        # The synchronous call can hide a failure.
        request.start_async(given)
        request.wait()
        return request.get_tensor("sentence_embedding").data.copy()

    return run


def milliseconds(run, given):
    times = []
    for _ in range(30):
        start = time.perf_counter()
        run(given)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: check_model.py <minilm.onnx>")
    rows = [entry["ids"] for entry in REFERENCE]
    wanted = np.array([entry["embedding"] for entry in REFERENCE])
    for name, run in {"ONNX Runtime": on_onnxruntime(sys.argv[1]), "OpenVINO": on_openvino(sys.argv[1])}.items():
        single = np.concatenate([run(inputs([row])) for row in rows])
        batch = run(inputs(rows))
        for form, got in {"one by one": single, "as one padded batch": batch}.items():
            cosine = (got * wanted).sum(1).min()
            print(f"{name}, {form}: lowest cosine {cosine:.7f}, max abs diff {np.abs(got - wanted).max():.1e}")
        for length in (8, 32, 128):
            row = np.random.default_rng(length).integers(1000, 30000, length)
            print(f"{name}, 1x{length}: {milliseconds(run, inputs([row])):.1f} ms")


if __name__ == "__main__":
    main()
