"""KServe's InferenceRESTClient, with the second version of its protocol."""

import asyncio
import sys

import httpx
import numpy as np
from tensors import DATATYPES, IN_JSON, model, same

from story import equal, holds, refused_async, step, tell

# The package reads the program's arguments when it is imported, as those of a server.
arguments, sys.argv[1:] = sys.argv[1:], []
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig  # noqa: E402
from kserve.protocol.infer_type import RequestedOutput  # noqa: E402

sys.argv[1:] = arguments


def client():
    return InferenceRESTClient(RESTConfig(protocol="v2", timeout=30))


def base(args):
    return f"http://{args.http}"


def given(name, datatype, array, binary):
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


async def infer(server, args, name, inputs, **rest):
    request = InferRequest(model_name=name, infer_inputs=inputs, **rest)
    return await server.infer(base(args), request, model_name=name)


@step()
async def health(args):
    """Models are ready, and one that is not there is not."""
    async with client() as server:
        holds(await server.is_model_ready(base(args), "add"), "`add` is not ready")
        holds(not await server.is_model_ready(base(args), "no-such-model"), "a model that is not there is ready")


@step("health-body")
async def health_in_json(args):
    """The server says in JSON that it is live and ready."""
    async with client() as server:
        equal(await server.is_server_live(base(args)), True, "live")
        equal(await server.is_server_ready(base(args)), True, "ready")


@step()
async def every_datatype_in_json(args):
    """Every datatype that JSON can write goes in and comes out."""
    async with client() as server:
        for datatype, array in IN_JSON.items():
            if datatype.lower() in args.without:
                continue
            reply = await infer(server, args, model(datatype), [given("x", datatype, array, False)])
            equal(reply.model_name, model(datatype), "the model")
            same(reply.outputs[0].as_numpy(), array, datatype)


@step("binary")
async def every_datatype_in_binary(args):
    """Every datatype goes in and comes out in binary, to the last bit."""
    async with client() as server:
        for datatype, array in DATATYPES.items():
            if datatype.lower() in args.without:
                continue
            reply = await infer(
                server,
                args,
                model(datatype),
                [given("x", datatype, array, True)],
                parameters={"binary_data_output": True},
            )
            same(reply.outputs[0].as_numpy(), array, datatype)


@step("binary")
async def outputs_by_name(args):
    """Outputs are asked for by name, one in binary and the other in JSON."""
    rows = np.array([[1, 5, 2, 0], [9, 1, 1, 1]], np.float32)
    async with client() as server:
        wanted = [
            RequestedOutput("argmax", parameters={"binary_data": False}),
            RequestedOutput("double", parameters={"binary_data": True}),
        ]
        inputs = [given("x", "FP32", rows, True)]
        reply = await infer(server, args, "two-outputs", inputs, request_outputs=wanted)
        outputs = {output.name: output.as_numpy() for output in reply.outputs}
        same(outputs["double"], rows * 2, "double")
        same(outputs["argmax"], np.array([1, 0]), "argmax")


@step()
async def ids(args):
    """Each of many requests that are under way at once gets its own id and answer."""
    async with client() as server:

        async def ask(number):
            inputs = [
                given("a", "INT64", np.array([number], np.int64), False),
                given("b", "INT64", np.array([1000 * number], np.int64), False),
            ]
            reply = await infer(server, args, "add", inputs, request_id=str(number))
            equal(reply.id, str(number), "the id")
            same(reply.outputs[0].as_numpy(), np.array([1001 * number]), "the sum")

        await asyncio.gather(*(ask(number) for number in range(100)))


@step()
async def what_is_wrong_is_told(args):
    """What a model cannot take is refused, and the client finds the reason."""
    async with client() as server:
        one = given("a", "INT64", np.array([1], np.int64), False)
        await refused_async(infer(server, args, "add", [one]), httpx.HTTPStatusError, "400", "b")
        await refused_async(
            infer(server, args, "no-such-model", [one]), httpx.HTTPStatusError, "404", "no-such-model"
        )


tell(__doc__)
