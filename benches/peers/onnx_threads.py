"""The reference runtime of the tests' clients, with as many ONNX Runtime threads as the benchmark says."""

import os

import onnxruntime
from onnx_model import OnnxModel, port


class ThreadedOnnxModel(OnnxModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        self.inputs = [port(value) for value in self.session.get_inputs()]
        self.outputs = [port(value) for value in self.session.get_outputs()]
        return True
