"""Serves one model as `model` with MLServer, without worker processes, and keeps its settings in the current folder.

    serve_mlserver.py HTTP-PORT GRPC-PORT MODEL.onnx
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
http, grpc, model = sys.argv[1:]
folder = Path.cwd()
settings = {
    "host": "127.0.0.1",
    "http_port": int(http),
    "grpc_port": int(grpc),
    "metrics_endpoint": None,
    "parallel_workers": 0,
    "debug": False,
}
(folder / "settings.json").write_text(json.dumps(settings))
(folder / "model").mkdir()
model_settings = {
    "name": "model",
    "implementation": "onnx_threads.ThreadedOnnxModel",
    "parameters": {"uri": str(Path(model).resolve(strict=True))},
}
(folder / "model" / "model-settings.json").write_text(json.dumps(model_settings))
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1] / "tests/clients/reference")])
program = Path(sys.executable).with_name("mlserver")
os.execv(program, [str(program), "start", str(folder)])
