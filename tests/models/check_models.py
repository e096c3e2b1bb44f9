"""Try every model of this folder on ONNX Runtime, OpenVINO and tract, each in a process of its own, and print what happened."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from onnx import TensorProto

HERE = Path(__file__).resolve().parent
SECONDS = 20
MEMORY_BYTES = 8 << 30

EDGES = {
    "float32": np.array([0.0, -0.0, np.nan, np.inf, 3.4e38, 1e-45], np.float32),
    "float64": np.array([0.0, np.pi, 1e300, -np.inf]),
    "float16": np.array([0.0, 65504, 6e-8, np.nan], np.float16),
    "bfloat16": np.array([0.0, 1.0, 3e38, -2.5], ml_dtypes.bfloat16),
    "bool": np.array([True, False, True]),
    "string": np.array(["", "tenon", "žluťoučký"], object),
}
INT64_PAIR = {"a": np.array([7, -7, 2**40], np.int64), "b": np.array([2, 2, 3], np.int64)}


def inputs_and_answers(name):
    """What is sent to a model, and what it should answer; None where no answer is expected."""
    kind = name.removeprefix("identity_")
    if kind != name:
        limits = EDGES[kind] if kind in EDGES else np.array([np.iinfo(kind).min, 0, np.iinfo(kind).max], kind)
        return {"x": limits}, [limits]
    four = np.array([[1, 5, 2, 0], [9, 1, 1, 1]], np.float32)
    one = np.array([1.5], np.float32)
    return {
        "add": (INT64_PAIR, [np.array([9, -5, 2**40 + 3])]),
        "divide": (INT64_PAIR, [np.array([3, -3, 2**40 // 3])]),
        "two_outputs": ({"x": four}, [2 * four, np.array([1, 0])]),
        "dynamic_seq": (
            {"ids": np.array([[1, 2, 3], [97, 98, 99]], np.int64)},
            [np.array([[2], [98]], np.float32) + np.arange(8, dtype=np.float32) / 8],
        ),
        "slow": ({"x": one}, [one]),
        "negative_dim": ({"x": four}, None),
        "bad_external": ({"x": four[0]}, None),
        "digits": ({"image": np.zeros((2, 1, 8, 8), np.float32)}, None),
    }.get(name, ({"x": one}, None))


def run_onnxruntime(path, inputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    print("loads", end="", flush=True)
    if path.stem == "identity_bfloat16":
        # numpy has no bfloat16 of its own: the binding takes and gives the bits under the ONNX type.
        answer = np.empty_like(inputs["x"])
        bound = [
            onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
            for array in (inputs["x"], answer)
        ]
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", bound[0])
        binding.bind_ortvalue_output("y", bound[1])

        def run_bits():
            session.run_with_iobinding(binding)
            return [answer]

        return run_bits
    return lambda: session.run(None, inputs)


def run_openvino(path, inputs):
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    print("loads", end="", flush=True)
    request = compiled.create_infer_request()

    def run():
        # The synchronous call can hide a failure.
        request.start_async({port.any_name: openvino_tensor(inputs[port.any_name]) for port in compiled.inputs})
        request.wait()
        return [openvino_array(request.get_tensor(port)) for port in compiled.outputs]

    return run


def openvino_tensor(array):
    import openvino

    if array.dtype == ml_dtypes.bfloat16:
        return openvino.Tensor(array.view(np.uint16), array.shape, openvino.Type.bf16)
    return openvino.Tensor(array.astype(np.str_) if array.dtype == object else array)


def openvino_array(tensor):
    import openvino

    if tensor.element_type == openvino.Type.string:
        return tensor.str_data.astype(object)
    return tensor.data.view(ml_dtypes.bfloat16) if tensor.element_type == openvino.Type.bf16 else tensor.data


def run_tract(path, inputs):
    import tract

    model = tract.onnx().load(path)
    names = [model.input_name(i) for i in range(model.input_count())]
    # Concrete shapes, as the host gives them: tract is slow, or gives up, with symbols.
    for i, name in enumerate(names):
        shape, kind = inputs[name].shape, inputs[name].dtype
        letter = {"b": "bool", "O": "string"}.get(kind.kind, f"{kind.kind}{8 * kind.itemsize}")
        model.set_input_fact(i, ",".join([*map(str, shape), letter]))
    runnable = model.into_model().into_runnable()
    print("loads", end="", flush=True)
    return lambda: [tensor.to_numpy() for tensor in runnable.run([inputs[name] for name in names])]


def same(got, want):
    if want.dtype == ml_dtypes.bfloat16:
        got, want = got.view(np.uint16), want.view(np.uint16)
    return got.dtype == want.dtype and np.array_equal(got, want, equal_nan=want.dtype.kind == "f")


def child(backend, path):
    """Load and run one model, and print a word for each step that was reached."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    inputs, answers = inputs_and_answers(path.stem)
    run = BACKENDS[backend](path, inputs)
    start = time.perf_counter()
    outputs = run()
    print(f", runs ({time.perf_counter() - start:.3f} s)", end="")
    if answers is not None:
        right = all(same(got, want) for got, want in zip(outputs, answers, strict=True))
        print(", right" if right else f", WRONG: {outputs}", end="")


def outcome(backend, path):
    """What a child process said of one model on one backend, and how it ended."""
    command = [sys.executable, __file__, backend, path]
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "RUST_LIB_BACKTRACE": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired as expired:
        return f"{(expired.stdout or b'').decode()}, still running after {SECONDS} s"
    if done.returncode < 0:
        return f"{done.stdout}, ended by signal {-done.returncode}"
    if done.returncode > 0:
        return f"{done.stdout}; refused: {' '.join(done.stderr.split())[-160:]}"
    return done.stdout


BACKENDS = {"onnxruntime": run_onnxruntime, "openvino": run_openvino, "tract": run_tract}


def main():
    if len(sys.argv) == 3:
        child(sys.argv[1], Path(sys.argv[2]))
        return
    for path in sorted([*HERE.glob("*.onnx"), *HERE.glob("*.xml")]):
        for backend in BACKENDS:
            if path.suffix == ".onnx" or backend == "openvino":
                print(f"{path.name:24} {backend:12} {outcome(backend, path)}", flush=True)


if __name__ == "__main__":
    main()
