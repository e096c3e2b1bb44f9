"""tritonclient over gRPC, with the standard services for health and reflection."""

import time

import grpc as raw
import numpy as np
import tritonclient.grpc as grpc
from tensors import ANY_BYTES, DATATYPES, model, same, scores_of_batch
from tritonclient.utils import InferenceServerException

from story import equal, holds, refused, step, tell


def client(args):
    return grpc.InferenceServerClient(args.grpc)


def given(name, datatype, array):
    tensor = grpc.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def add(server, a, b, **rest):
    inputs = [given("a", "INT64", np.array(a, np.int64)), given("b", "INT64", np.array(b, np.int64))]
    return server.infer("add", inputs, client_timeout=rest.pop("client_timeout", 30), **rest)


@step()
def health(args):
    """The server is live and ready, and says who it is."""
    with client(args) as server:
        holds(server.is_server_live(), "the server is not live")
        holds(server.is_server_ready(), "the server is not ready")
        metadata = server.get_server_metadata()
        holds(metadata.name and metadata.version, f"the metadata is {metadata}")
        return f"{metadata.name} {metadata.version}"


@step()
def metadata(args):
    """A model is ready and tells its inputs and outputs."""
    with client(args) as server:
        holds(server.is_model_ready("add"), "`add` is not ready")
        metadata = server.get_model_metadata("add")
        equal([port.name for port in metadata.inputs], ["a", "b"], "the inputs")
        equal([(port.datatype, list(port.shape)) for port in metadata.outputs], [("INT64", [-1])], "the outputs")
        version = metadata.versions[0]
        equal(server.get_model_metadata("add", version).name, "add", "the name")
        refused(
            lambda: server.get_model_metadata("no-such-model"),
            InferenceServerException,
            "NOT_FOUND",
            "no-such-model",
        )


@step()
def every_datatype(args):
    """Every datatype goes in and comes out, to the last bit."""
    import ml_dtypes

    arrays = DATATYPES | {"BF16": np.array([0.5, -1e38, np.inf], ml_dtypes.bfloat16)}
    with client(args) as server:
        for datatype, array in arrays.items():
            if datatype.lower() in args.without:
                continue
            result = server.infer(model(datatype), [given("x", datatype, array)], client_timeout=30)
            same(result.as_numpy("y"), array, datatype)


@step()
def no_elements_and_many(args):
    """Tensors of a million elements go in and come out; one of none does, or is refused by name."""
    with client(args) as server:
        for count in [1, 1 << 20]:
            array = np.arange(count, dtype=np.int32)
            result = server.infer(model("INT32"), [given("x", "INT32", array)], client_timeout=30)
            same(result.as_numpy("y"), array, f"{count} elements")
        empty = np.zeros(0, np.int32)
        try:
            result = server.infer(model("INT32"), [given("x", "INT32", empty)], client_timeout=30)
        except InferenceServerException as error:
            told = str(error)
            holds("INVALID_ARGUMENT" in told and "`x`" in told, f"no elements are refused by {told}")
        else:
            same(result.as_numpy("y"), empty, "no elements")


@step()
def ids_and_chosen_outputs(args):
    """The id comes back, and only the outputs that were asked for."""
    with client(args) as server:
        result = add(server, [1, 2], [3, 4], request_id="42")
        equal(result.get_response().id, "42", "the id")
        equal(result.get_response().model_name, "add", "the model")
        same(result.as_numpy("sum"), np.array([4, 6]), "the sum")
        rows = np.array([[1, 5, 2, 0], [9, 1, 1, 1]], np.float32)
        result = server.infer("two-outputs", [given("x", "FP32", rows)], client_timeout=30)
        same(result.as_numpy("double"), rows * 2, "double")
        same(result.as_numpy("argmax"), np.array([1, 0]), "argmax")
        wanted = [grpc.InferRequestedOutput("argmax")]
        result = server.infer("two-outputs", [given("x", "FP32", rows)], outputs=wanted, client_timeout=30)
        equal(len(result.get_response().outputs), 1, "the number of outputs")


@step()
def parameters_and_compression(args):
    """Parameters, a priority, a timeout, headers and compressed messages are taken."""
    with client(args) as server:
        own = {"text": "a", "whole": 7, "truth": True}
        same(add(server, [1], [2], parameters=own).as_numpy("sum"), np.array([3]), "the sum")
        result = add(server, [1], [2], priority=1, timeout=20_000_000, headers={"x-request-id": "7"})
        same(result.as_numpy("sum"), np.array([3]), "the sum")
        for coding in ["gzip", "deflate"]:
            if coding not in args.without:
                same(add(server, [1], [2], compression_algorithm=coding).as_numpy("sum"), np.array([3]), coding)


@step()
def what_is_wrong_is_told(args):
    """What a model cannot take is refused, with the code for that and by name."""
    with client(args) as server:
        one = np.array([1], np.int64)
        a, b = given("a", "INT64", one), given("b", "INT64", one)
        wanted = [grpc.InferRequestedOutput("no-such-output")]
        for inputs, outputs, word in [
            ([a], None, "b"),
            ([a, b, given("c", "INT64", one)], None, "c"),
            ([a, given("b", "FP32", np.array([1], np.float32))], None, "b"),
            ([a, given("b", "INT64", one.reshape(1, 1))], None, "b"),
            ([a, b], wanted, "no-such-output"),
        ]:
            refused(
                lambda: server.infer("add", inputs, outputs=outputs, client_timeout=30),
                InferenceServerException,
                "INVALID_ARGUMENT",
                word,
            )
        refused(lambda: server.infer("no-such-model", [a]), InferenceServerException, "NOT_FOUND")
        same(add(server, [1], [2]).as_numpy("sum"), np.array([3]), "the sum after all that")


@step("slow")
def deadlines(args):
    """A call that takes longer than its deadline ends at its deadline, and the next one is served."""
    with client(args) as server:
        inputs = [given("x", "FP32", np.ones(1, np.float32))]
        started = time.monotonic()
        refused(
            lambda: server.infer("slow", inputs, client_timeout=0.2), InferenceServerException, "DEADLINE_EXCEEDED"
        )
        took = time.monotonic() - started
        holds(took < 5, f"it took {took:.1f} s")
        same(add(server, [1], [2]).as_numpy("sum"), np.array([3]), "the sum after that")


@step()
def many_at_once(args):
    """Each of many requests that are under way at once gets its own answer."""
    import queue

    done = queue.Queue()
    with client(args) as server:
        for number in range(200):
            inputs = [
                given("a", "INT64", np.array([number], np.int64)),
                given("b", "INT64", np.array([1000 * number], np.int64)),
            ]

            def answered(result, error, number=number):
                done.put((number, result, error))

            server.async_infer("add", inputs, answered, request_id=str(number), client_timeout=60)
        for _ in range(200):
            number, result, error = done.get(timeout=60)
            holds(error is None, f"request {number}: {error}")
            equal(result.get_response().id, str(number), "the id")
            same(result.as_numpy("sum"), np.array([1001 * number]), "the sum")


@step()
def batches(args):
    """A batch of images is answered as each image is alone."""
    with client(args) as server:
        scores_of_batch(lambda x: server.infer("digits", [given("image", "FP32", x)]).as_numpy("scores"))


@step("echo")
def a_guest(args):
    """A function of WebAssembly takes and answers every datatype in one request."""
    import ml_dtypes

    arrays = DATATYPES | {"BF16": np.array([0.5, -1e38], ml_dtypes.bfloat16), "BYTES": ANY_BYTES}
    inputs = [given(name.lower(), name, array) for name, array in arrays.items()]
    with client(args) as server:
        for copy in [False, True]:
            result = server.infer("echo", inputs, parameters={"copy": copy}, client_timeout=30)
            for name, array in arrays.items():
                same(result.as_numpy(name.lower()), array, name)


@step("config", "statistics")
def extensions(args):
    """Configuration and statistics are there."""
    with client(args) as server:
        config = server.get_model_config("add").config
        equal([port.name for port in config.input], ["a", "b"], "the inputs")
        count = server.get_inference_statistics("add").model_stats[0].inference_count
        add(server, [1], [2])
        after = server.get_inference_statistics("add").model_stats[0].inference_count
        equal(after, count + 1, "inference_count")


@step("index")
def repository(args):
    """The index lists the models."""
    with client(args) as server:
        index = {entry.name: entry.state for entry in server.get_model_repository_index().models}
        equal(index.get("add"), "READY", "the state of `add`")


@step("control")
def load_and_unload(args):
    """A model is unloaded, loaded again, and then answers as before; nothing can be uploaded."""
    with client(args) as server:
        server.unload_model("add")
        holds(not server.is_model_ready("add"), "`add` is ready, though unloaded")
        refused(lambda: add(server, [1], [2]), InferenceServerException)
        server.load_model("add")
        same(add(server, [1], [2]).as_numpy("sum"), np.array([3]), "the sum")
        refused(lambda: server.load_model("no-such-model"), InferenceServerException, "NOT_FOUND")
        refused(lambda: server.load_model("add", config='{"max_batch_size":8}'), InferenceServerException, "config")
        files = {"file:1/model.onnx": b"no model"}
        refused(lambda: server.load_model("add", config="{}", files=files), InferenceServerException)



@step("grpc-health")
def standard_health(args):
    """The standard health service answers for the server and for the protocol's service."""
    with raw.insecure_channel(args.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", lambda text: text, lambda answer: answer)
        name = b"inference.GRPCInferenceService"
        equal(check(b"", timeout=10), b"\x08\x01", "the health of the server")
        equal(check(b"\x0a" + bytes([len(name)]) + name, timeout=10), b"\x08\x01", "the health of the service")
        told = refused(lambda: check(b"\x0a\x02no", timeout=10), raw.RpcError)
        holds("NOT_FOUND" in told, told)


@step("reflection")
def standard_reflection(args):
    """Reflection lists the services, and has the file of the protocol's."""
    with raw.insecure_channel(args.grpc) as channel:
        method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        ask = channel.stream_stream(method, lambda text: text, lambda answer: answer)
        name = b"inference.GRPCInferenceService"
        # The seventh field asks for the list of services, the fourth for the file that has a symbol.
        requests = [b"\x3a\x00", b"\x22" + bytes([len(name)]) + name]
        services, file = ask(iter(requests), timeout=10)
        holds(name in services, f"the services are {services}")
        holds(b"ModelInferRequest" in file, f"the file is {file[:200]}")


tell(__doc__)
