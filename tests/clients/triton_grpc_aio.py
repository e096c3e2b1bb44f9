"""tritonclient over gRPC on asyncio, with calls and a stream."""

import asyncio

import numpy as np
import tritonclient.grpc.aio as grpc
from tensors import DATATYPES, model, same
from tritonclient.utils import InferenceServerException

from story import equal, holds, refused_async, step, tell


def client(args):
    return grpc.InferenceServerClient(args.grpc)


def given(name, datatype, array):
    tensor = grpc.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def addends(number):
    a, b = np.array([number], np.int64), np.array([1000 * number], np.int64)
    return [given("a", "INT64", a), given("b", "INT64", b)]


@step()
async def health(args):
    """The server and its models are ready, and tell what they are."""
    async with client(args) as server:
        holds(await server.is_server_live(), "the server is not live")
        holds(await server.is_server_ready(), "the server is not ready")
        holds(await server.is_model_ready("add"), "`add` is not ready")
        metadata = await server.get_model_metadata("two-outputs")
        equal([port.name for port in metadata.outputs], ["double", "argmax"], "the outputs")


@step()
async def every_datatype(args):
    """Every datatype goes in and comes out, all requests under way at once."""
    arrays = {name: array for name, array in DATATYPES.items() if name.lower() not in args.without}
    async with client(args) as server:

        async def ask(datatype, array):
            result = await server.infer(model(datatype), [given("x", datatype, array)], client_timeout=30)
            same(result.as_numpy("y"), array, datatype)

        await asyncio.gather(*(ask(datatype, array) for datatype, array in arrays.items()))


@step()
async def many_at_once(args):
    """Each of many requests that are under way at once gets its own answer."""
    async with client(args) as server:

        async def ask(number):
            result = await server.infer("add", addends(number), request_id=str(number), client_timeout=60)
            equal(result.get_response().id, str(number), "the id")
            same(result.as_numpy("sum"), np.array([1001 * number]), "the sum")

        await asyncio.gather(*(ask(number) for number in range(300)))


@step()
async def what_is_wrong_is_told(args):
    """What a model cannot take is refused, with the code for that."""
    async with client(args) as server:
        one = [given("a", "INT64", np.array([1], np.int64))]
        await refused_async(server.infer("add", one), InferenceServerException, "INVALID_ARGUMENT", "b")
        await refused_async(server.infer("no-such-model", one), InferenceServerException, "NOT_FOUND")


@step("slow")
async def dropped_calls(args):
    """A call that is cancelled does not keep the server from the next."""
    async with client(args) as server:
        inputs = [given("x", "FP32", np.ones(1, np.float32))]
        calls = [asyncio.create_task(server.infer("slow", inputs)) for _ in range(4)]
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        result = await server.infer("add", addends(3), client_timeout=30)
        same(result.as_numpy("sum"), np.array([3003]), "the sum")


@step("stream")
async def a_stream(args):
    """Requests on one stream are answered in their order; a wrong one is told, and the stream goes on."""
    async with client(args) as server:

        async def requests():
            for number in range(20):
                wrong = number == 7
                inputs = addends(number)[:1] if wrong else addends(number)
                yield {"model_name": "add", "inputs": inputs, "request_id": str(number)}

        numbers = iter(range(20))
        async for result, error in server.stream_infer(requests(), stream_timeout=60):
            number = next(numbers)
            if number == 7:
                holds(error is not None, "the wrong request was answered")
                continue
            holds(error is None, f"request {number}: {error}")
            equal(result.get_response().id, str(number), "the id")
            same(result.as_numpy("sum"), np.array([1001 * number]), "the sum")
        equal(next(numbers, None), None, "the next answer")


tell(__doc__)
