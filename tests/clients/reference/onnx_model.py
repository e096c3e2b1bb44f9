"""An MLServer runtime that serves one ONNX model with ONNX Runtime."""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor

# ONNX Runtime's name of a type, and the protocol's.
DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def port(value):
    """What the protocol's metadata says of an input or output of the session."""
    shape = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    return MetadataTensor(name=value.name, datatype=DATATYPES[value.type], shape=shape)


class OnnxModel(MLModel):
    """The model at the settings' `uri`; its metadata is the model's own."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        self.inputs = [port(value) for value in self.session.get_inputs()]
        self.outputs = [port(value) for value in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        asked = [output.name for output in payload.outputs or []] or None
        try:
            given = {tensor.name: array(tensor) for tensor in payload.inputs}
            values = self.session.run(asked, given)
        except Exception as error:
            # What ONNX Runtime refuses is the caller's mistake: it checks names, types and shapes itself.
            raise InferenceError(str(error)) from error
        names = asked or [output.name for output in self.outputs]
        outputs = [encoded(name, value) for name, value in zip(names, values)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def array(tensor):
    if tensor.datatype == "BYTES":
        return np.array(StringCodec.decode_input(tensor), dtype=object).reshape(tensor.shape)
    return NumpyCodec.decode_input(tensor)


def encoded(name, value):
    if value.dtype == object:
        output = StringCodec.encode_output(name, value.ravel().tolist())
    else:
        output = NumpyCodec.encode_output(name, value)
    # The codecs add a dimension to what has one alone.
    output.shape = list(value.shape)
    return output
