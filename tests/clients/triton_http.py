"""tritonclient over HTTP, one request at a time and many at once."""

import numpy as np
import tritonclient.http as http
from tensors import ANY_BYTES, DATATYPES, IN_JSON, model, same, scores_of_batch
from tritonclient.utils import InferenceServerException

from story import equal, holds, refused, step, tell


def client(args):
    return http.InferenceServerClient(args.http, concurrency=8, network_timeout=30.0, connection_timeout=10.0)


def given(name, datatype, array, binary=True):
    tensor = http.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def add(server, a, b, **rest):
    inputs = [given("a", "INT64", np.array(a, np.int64)), given("b", "INT64", np.array(b, np.int64))]
    return server.infer("add", inputs, **rest)


@step()
def health(args):
    """The server is live and ready, and says who it is."""
    with client(args) as server:
        holds(server.is_server_live(), "the server is not live")
        holds(server.is_server_ready(), "the server is not ready")
        metadata = server.get_server_metadata()
        holds(metadata["name"] and metadata["version"], f"the metadata is {metadata}")
        return f"{metadata['name']} {metadata['version']} with {', '.join(metadata['extensions'])}"


@step()
def metadata(args):
    """A model is ready and tells its inputs and outputs."""
    with client(args) as server:
        holds(server.is_model_ready("add"), "`add` is not ready")
        holds(not server.is_model_ready("no-such-model"), "a model that is not there is ready")
        metadata = server.get_model_metadata("add")
        equal([port["name"] for port in metadata["inputs"]], ["a", "b"], "the inputs")
        equal(metadata["outputs"], [{"name": "sum", "datatype": "INT64", "shape": [-1]}], "the outputs")
        version = metadata["versions"][0]
        holds(server.is_model_ready("add", version), f"version {version} is not ready")
        equal(server.get_model_metadata("add", version)["name"], "add", "the name")
        told = refused(lambda: server.get_model_metadata("no-such-model"), InferenceServerException, "no-such-model")
        holds("404" in told, f"the status is another than 404: {told}")


@step("announced")
def extensions(args):
    """The extensions that the clients' tools look for are announced."""
    with client(args) as server:
        announced = server.get_server_metadata()["extensions"]
        for name in ["binary_tensor_data", "model_repository", "statistics", "model_configuration", "parameters"]:
            holds(name in announced, f"`{name}` is not among {announced}")


@step("binary")
def every_datatype_in_binary(args):
    """Every datatype goes in and comes out in binary, to the last bit."""
    import ml_dtypes

    arrays = dict(DATATYPES)
    if "bf16" not in args.without:
        arrays["BF16"] = np.array([0.5, -1e38, np.inf], ml_dtypes.bfloat16)
    if "bytes" in args.without:
        del arrays["BYTES"]
    with client(args) as server:
        for datatype, array in arrays.items():
            result = server.infer(model(datatype), [given("x", datatype, array)])
            same(result.as_numpy("y"), array, datatype)
            equal(result.get_output("y")["datatype"], datatype, "the datatype")


@step()
def every_datatype_in_json(args):
    """Every datatype that JSON can write goes in and comes out in JSON."""
    with client(args) as server:
        for datatype, array in IN_JSON.items():
            if datatype == "BYTES" and "bytes" in args.without:
                continue
            wanted = [http.InferRequestedOutput("y", binary_data=False)]
            result = server.infer(model(datatype), [given("x", datatype, array, binary=False)], outputs=wanted)
            same(result.as_numpy("y"), array, datatype)


@step("binary")
def binary_and_json_mixed(args):
    """Inputs in JSON and in binary stand in one request, and so do outputs in one answer."""
    with client(args) as server:
        numbers = np.array([7, -3], np.int64)
        for a_in_binary in [False, True]:
            inputs = [
                given("a", "INT64", numbers, binary=a_in_binary),
                given("b", "INT64", numbers * 10, binary=not a_in_binary),
            ]
            same(server.infer("add", inputs).as_numpy("sum"), numbers * 11, "the sum")
        rows = np.array([[1, 5, 2, 0], [9, 1, 1, 1]], np.float32)
        for binary in [("double",), ("argmax",), ("double", "argmax"), ()]:
            wanted = [http.InferRequestedOutput(name, binary_data=name in binary) for name in ["argmax", "double"]]
            result = server.infer("two-outputs", [given("x", "FP32", rows)], outputs=wanted)
            same(result.as_numpy("double"), rows * 2, "double")
            same(result.as_numpy("argmax"), np.array([1, 0]), "argmax")
            for name in ["argmax", "double"]:
                sized = "binary_data_size" in result.get_output(name).get("parameters", {})
                equal(sized, name in binary, f"whether {name} came in binary")


@step("binary")
def no_elements_and_many(args):
    """Tensors of a million elements go in and come out; one of none does, or is refused by name."""
    with client(args) as server:
        for count in [1, 1 << 20]:
            array = np.arange(count, dtype=np.int32)
            result = server.infer(model("INT32"), [given("x", "INT32", array)])
            same(result.as_numpy("y"), array, f"{count} elements")
        empty = np.zeros(0, np.int32)
        try:
            result = server.infer(model("INT32"), [given("x", "INT32", empty)])
        except InferenceServerException as error:
            holds("400" in str(error) and "`x`" in str(error), f"no elements are refused by {error}")
        else:
            same(result.as_numpy("y"), empty, "no elements")


@step("binary")
def ids_and_chosen_outputs(args):
    """The id comes back, and only the outputs that were asked for."""
    with client(args) as server:
        result = add(server, [1, 2], [3, 4], request_id="an id/42")
        equal(result.get_response()["id"], "an id/42", "the id")
        equal(result.get_response()["model_name"], "add", "the model")
        same(result.as_numpy("sum"), np.array([4, 6]), "the sum")
        rows = np.ones((3, 4), np.float32)
        wanted = [http.InferRequestedOutput("argmax")]
        result = server.infer("two-outputs", [given("x", "FP32", rows)], outputs=wanted)
        equal(len(result.get_response()["outputs"]), 1, "the number of outputs")
        holds(result.as_numpy("double") is None, "an output came that nobody asked for")


@step("binary")
def parameters(args):
    """Parameters, a priority and a timeout go with a request."""
    with client(args) as server:
        own = {"text": "a", "number": 1.5, "whole": 7, "truth": True}
        same(add(server, [1], [2], parameters=own).as_numpy("sum"), np.array([3]), "the sum")
        result = add(server, [1], [2], priority=1, timeout=20_000_000)
        same(result.as_numpy("sum"), np.array([3]), "the sum")


@step("binary")
def compression(args):
    """Requests and answers are compressed by gzip and deflate."""
    array = np.zeros(10_000, np.int32)
    with client(args) as server:
        for request in [None, "gzip", "deflate"]:
            for answer in [None, "gzip", "deflate"]:
                result = server.infer(
                    model("INT32"),
                    [given("x", "INT32", array)],
                    request_compression_algorithm=request,
                    response_compression_algorithm=answer,
                )
                same(result.as_numpy("y"), array, f"{request} and {answer}")


@step("binary")
def what_is_wrong_is_told(args):
    """What a model cannot take is refused with 400, by name."""
    with client(args) as server:
        one = np.array([1], np.int64)

        def infer(*inputs, **rest):
            return lambda: server.infer("add", list(inputs), **rest)

        a, b = given("a", "INT64", one), given("b", "INT64", one)
        wanted = [http.InferRequestedOutput("no-such-output")]
        for call, word in [
            (infer(a), "b"),
            (infer(a, b, given("c", "INT64", one)), "c"),
            (infer(a, a, b), "a"),
            (infer(a, given("b", "FP32", np.array([1], np.float32))), "b"),
            (infer(a, given("b", "INT64", one.reshape(1, 1))), "b"),
            (infer(a, b, outputs=wanted), "no-such-output"),
        ]:
            told = refused(call, InferenceServerException, word)
            holds("400" in told, f"the status is another: {told}")
        holds(
            "404" in refused(lambda: server.infer("no-such-model", [a]), InferenceServerException),
            "a model that is not there is refused by another status than 404",
        )
        same(add(server, [1], [2]).as_numpy("sum"), np.array([3]), "the sum after all that")


@step("binary")
def many_at_once(args):
    """Each of many requests that are under way at once gets its own answer."""
    with client(args) as server:
        waiting = []
        for number in range(200):
            inputs = [
                given("a", "INT64", np.array([number], np.int64)),
                given("b", "INT64", np.array([1000 * number], np.int64)),
            ]
            waiting.append((number, server.async_infer("add", inputs, request_id=str(number))))
        for number, pending in waiting:
            result = pending.get_result(timeout=30)
            equal(result.get_response()["id"], str(number), "the id")
            same(result.as_numpy("sum"), np.array([1001 * number]), "the sum")


@step("binary")
def batches(args):
    """A batch of images is answered as each image is alone."""
    with client(args) as server:
        scores_of_batch(lambda x: server.infer("digits", [given("image", "FP32", x)]).as_numpy("scores"))


@step("binary", "echo")
def a_guest(args):
    """A function of WebAssembly takes and answers every datatype in one request."""
    import ml_dtypes

    arrays = DATATYPES | {"BF16": np.array([0.5, -1e38], ml_dtypes.bfloat16), "BYTES": ANY_BYTES}
    inputs = [given(name.lower(), name, array) for name, array in arrays.items()]
    with client(args) as server:
        for copy in [False, True]:
            result = server.infer("echo", inputs, parameters={"copy": copy})
            for name, array in arrays.items():
                same(result.as_numpy(name.lower()), array, name)


@step("config")
def configuration(args):
    """The configuration has what tools read of it."""
    with client(args) as server:
        config = server.get_model_config("add")
        equal(config["name"], "add", "the name")
        equal(config["max_batch_size"], 0, "max_batch_size")
        equal([port["name"] for port in config["input"]], ["a", "b"], "the inputs")
        equal(config["output"][0]["data_type"], "TYPE_INT64", "the output's type")
        refused(lambda: server.get_model_config("no-such-model"), InferenceServerException, "no-such-model")


@step("statistics")
def statistics(args):
    """The statistics count what went well, and nothing else with it."""
    with client(args) as server:

        def read():
            return server.get_inference_statistics("two-outputs")["model_stats"][0]

        before = read()
        server.infer("two-outputs", [given("x", "FP32", np.ones((2, 4), np.float32))])
        refused(lambda: server.infer("two-outputs", []), InferenceServerException)
        after = read()
        count = before["inference_stats"]["success"]["count"]
        equal(after["inference_stats"]["success"]["count"], count + 1, "the inferences that went well")
        equal(after["inference_count"], before["inference_count"] + 1, "inference_count")
        holds(after["last_inference"] > 1_600_000_000_000, f"last_inference is {after['last_inference']}")
        holds(len(server.get_inference_statistics()["model_stats"]) > 1, "not all models have statistics")


@step("index")
def repository(args):
    """The index lists the models, and only ready ones where it is asked to."""
    with client(args) as server:
        index = {entry["name"]: entry["state"] for entry in server.get_model_repository_index()}
        for name in ["add", "digits", "two-outputs"]:
            equal(index.get(name), "READY", f"the state of `{name}`")


@step("control")
def load_and_unload(args):
    """A model is unloaded, loaded again, and then answers as before; nothing can be uploaded."""
    with client(args) as server:
        server.unload_model("add")
        holds(not server.is_model_ready("add"), "`add` is ready, though unloaded")
        index = {entry["name"]: entry["state"] for entry in server.get_model_repository_index()}
        equal(index["add"], "UNAVAILABLE", "the state of `add`")
        refused(lambda: add(server, [1], [2]), InferenceServerException)
        server.load_model("add")
        holds(server.is_model_ready("add"), "`add` is not ready, though loaded")
        same(add(server, [1], [2]).as_numpy("sum"), np.array([3]), "the sum")
        refused(lambda: server.load_model("no-such-model"), InferenceServerException, "no-such-model")
        refused(lambda: server.load_model("add", config='{"max_batch_size":8}'), InferenceServerException, "config")
        files = {"file:1/model.onnx": b"no model"}
        refused(lambda: server.load_model("add", config="{}", files=files), InferenceServerException)
        same(add(server, [1], [2]).as_numpy("sum"), np.array([3]), "the sum after all that")


tell(__doc__)
