"""tritonclient over HTTP on asyncio."""

import asyncio

import numpy as np
import tritonclient.http.aio as http
from tensors import DATATYPES, model, same
from tritonclient.utils import InferenceServerException

from story import equal, holds, refused_async, step, tell


def client(args):
    return http.InferenceServerClient(args.http, conn_limit=16, conn_timeout=30)


def given(name, datatype, array, binary=True):
    tensor = http.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def numbers(*values):
    return np.array(values, np.int64)


@step()
async def health(args):
    """The server and its models are ready, and tell what they are."""
    async with client(args) as server:
        holds(await server.is_server_live(), "the server is not live")
        holds(await server.is_server_ready(), "the server is not ready")
        holds(await server.is_model_ready("add"), "`add` is not ready")
        holds(not await server.is_model_ready("no-such-model"), "a model that is not there is ready")
        holds((await server.get_server_metadata())["name"], "the server has no name")
        metadata = await server.get_model_metadata("two-outputs")
        equal([port["name"] for port in metadata["outputs"]], ["double", "argmax"], "the outputs")


@step("binary")
async def every_datatype(args):
    """Every datatype goes in and comes out, all requests under way at once."""
    arrays = {name: array for name, array in DATATYPES.items() if name.lower() not in args.without}
    async with client(args) as server:

        async def ask(datatype, array):
            result = await server.infer(model(datatype), [given("x", datatype, array)])
            same(result.as_numpy("y"), array, datatype)

        await asyncio.gather(*(ask(datatype, array) for datatype, array in arrays.items()))


@step("binary")
async def many_at_once(args):
    """Each of many requests that are under way at once gets its own answer."""
    async with client(args) as server:

        async def ask(number):
            inputs = [given("a", "INT64", numbers(number)), given("b", "INT64", numbers(1000 * number))]
            result = await server.infer("add", inputs, request_id=str(number))
            equal(result.get_response()["id"], str(number), "the id")
            same(result.as_numpy("sum"), numbers(1001 * number), "the sum")

        await asyncio.gather(*(ask(number) for number in range(300)))


@step("binary")
async def compression(args):
    """Requests and answers are compressed by gzip and deflate."""
    array = np.arange(10_000, dtype=np.int32)
    async with client(args) as server:
        for coding in ["gzip", "deflate"]:
            result = await server.infer(
                model("INT32"),
                [given("x", "INT32", array)],
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            same(result.as_numpy("y"), array, coding)


@step("binary")
async def what_is_wrong_is_told(args):
    """What a model cannot take is refused, by name."""
    async with client(args) as server:
        await refused_async(server.infer("add", [given("a", "INT64", numbers(1))]), InferenceServerException, "b")
        await refused_async(server.infer("no-such-model", []), InferenceServerException, "no-such-model")
        await refused_async(server.get_model_metadata("no-such-model"), InferenceServerException, "no-such-model")


@step("statistics", "config", "index")
async def extensions(args):
    """Configuration, statistics and the index are there."""
    async with client(args) as server:
        equal((await server.get_model_config("add"))["name"], "add", "the name")
        equal((await server.get_inference_statistics("add"))["model_stats"][0]["name"], "add", "the name")
        index = [entry["name"] for entry in await server.get_model_repository_index()]
        holds("add" in index, f"`add` is not among {index}")


tell(__doc__)
