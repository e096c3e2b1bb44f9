"""A BentoML service of one ONNX model with one input and one output, in one worker process."""

import os
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime
from bentoml.validators import DType

Floats = Annotated[np.ndarray, DType("float32")]


@bentoml.service(workers=1, traffic={"timeout": 120})
class Model:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)
        self.input = self.session.get_inputs()[0].name

    @bentoml.api(route="/infer")
    def infer(self, image: Floats) -> Floats:
        return self.session.run(None, {self.input: image})[0]
