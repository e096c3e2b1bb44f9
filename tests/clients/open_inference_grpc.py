"""The client that is generated from the protocol's gRPC file: the core protocol and nothing else."""

import struct

import grpc
from open_inference.grpc import protocol, service

from story import equal, holds, step, tell


class Client:
    """The generated stub on a channel of its own."""

    def __init__(self, args):
        self.channel = grpc.insecure_channel(args.grpc)

    def __enter__(self):
        return service.GRPCInferenceServiceStub(self.channel)

    def __exit__(self, *_):
        self.channel.close()


def code(call):
    """The code with which `call` is refused."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error.code().name
    raise AssertionError(f"it was answered: {answer}")


def request(raw, model="add", **inputs):
    """Numbers of INT64 for each name, with raw or typed contents."""
    request = protocol.ModelInferRequest(model_name=model, id="42")
    for name, data in inputs.items():
        tensor = request.inputs.add(name=name, datatype="INT64", shape=[len(data)])
        if raw:
            request.raw_input_contents.append(struct.pack(f"<{len(data)}q", *data))
        else:
            tensor.contents.int64_contents.extend(data)
    return request


def numbers(reply):
    """The elements of the one output of INT64."""
    if reply.raw_output_contents:
        [raw] = reply.raw_output_contents
        return list(struct.unpack(f"<{len(raw) // 8}q", raw))
    return list(reply.outputs[0].contents.int64_contents)


@step()
def health(args):
    """The server and its models are ready."""
    with Client(args) as server:
        equal(server.ServerLive(protocol.ServerLiveRequest(), timeout=10).live, True, "live")
        equal(server.ServerReady(protocol.ServerReadyRequest(), timeout=10).ready, True, "ready")
        equal(server.ModelReady(protocol.ModelReadyRequest(name="add"), timeout=10).ready, True, "ready")


@step()
def metadata(args):
    """The server and its models tell what they are."""
    with Client(args) as server:
        metadata = server.ServerMetadata(protocol.ServerMetadataRequest(), timeout=10)
        holds(metadata.name and metadata.version, f"the metadata is {metadata}")
        add = server.ModelMetadata(protocol.ModelMetadataRequest(name="add"), timeout=10)
        equal([port.name for port in add.inputs], ["a", "b"], "the inputs")
        equal([list(port.shape) for port in add.outputs], [[-1]], "the shapes of the outputs")
        unknown = protocol.ModelMetadataRequest(name="no-such-model")
        equal(code(lambda: server.ModelMetadata(unknown, timeout=10)), "NOT_FOUND", "the code")


@step()
def inference(args):
    """Typed and raw contents are answered alike, with the id."""
    with Client(args) as server:
        for raw in [False, True]:
            reply = server.ModelInfer(request(raw, a=[1, -2], b=[30, 40]), timeout=30)
            equal((reply.id, reply.model_name), ("42", "add"), "the id and the model")
            equal(numbers(reply), [31, 38], "the sum")
            equal(bool(reply.raw_output_contents), raw, "whether the answer is raw")


@step()
def typed_contents(args):
    """Each datatype that has typed contents goes in and comes out in them."""
    rows = [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 32767]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -2.0]),
        ("FP64", "fp64_contents", [0.1, -1e300]),
        ("BYTES", "bytes_contents", [b"seven", b"", "größe 7".encode(), b"a\0b"]),
    ]
    with Client(args) as server:
        for datatype, field, data in rows:
            if datatype.lower() in args.without:
                continue
            request = protocol.ModelInferRequest(model_name=f"identity-{datatype.lower()}")
            tensor = request.inputs.add(name="x", datatype=datatype, shape=[len(data)])
            getattr(tensor.contents, field).extend(data)
            [output] = server.ModelInfer(request, timeout=30).outputs
            equal((output.name, output.datatype, list(output.shape)), ("y", datatype, [len(data)]), "the output")
            equal(list(getattr(output.contents, field)), data, datatype)


@step()
def what_is_wrong_is_told(args):
    """What a model cannot take is refused with the code for that."""
    with Client(args) as server:

        def refusal(request):
            return code(lambda: server.ModelInfer(request, timeout=30))

        for raw in [False, True]:
            equal(refusal(request(raw, a=[1])), "INVALID_ARGUMENT", "the code for a missing input")
        short = request(True, a=[1], b=[2])
        short.raw_input_contents[1] = b"\0\0\0"
        equal(refusal(short), "INVALID_ARGUMENT", "the code for data that are too short")
        unknown = request(True, model="no-such-model", a=[1], b=[2])
        equal(refusal(unknown), "NOT_FOUND", "the code for a model that is not there")


@step("strict-contents")
def contents_in_both_forms(args):
    """Raw and typed contents in one request are refused."""
    with Client(args) as server:
        both = request(False, a=[1], b=[2])
        both.raw_input_contents.extend([struct.pack("<q", 1), struct.pack("<q", 2)])
        equal(code(lambda: server.ModelInfer(both, timeout=30)), "INVALID_ARGUMENT", "the code")


@step("slow")
def deadlines(args):
    """A call that takes longer than its deadline ends at its deadline."""
    slow = protocol.ModelInferRequest(model_name="slow")
    slow.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    with Client(args) as server:
        equal(code(lambda: server.ModelInfer(slow, timeout=0.2)), "DEADLINE_EXCEEDED", "the code")
        equal(numbers(server.ModelInfer(request(True, a=[1], b=[2]), timeout=30)), [3], "the sum after that")


tell(__doc__)
