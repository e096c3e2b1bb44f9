"""The client that is generated from the protocol's OpenAPI file."""

import asyncio

from open_inference.openapi import client as openapi
from open_inference.openapi import errors, types

from story import equal, holds, refused, step, tell


def client(args):
    return openapi.OpenInferenceClient(base_url=f"http://{args.http}", timeout=30)


def request(**inputs):
    """A request with numbers of INT64 for each name."""
    tensors = [
        types.RequestInput(name=name, datatype="INT64", shape=[len(data)], data=types.TensorData(__root__=data))
        for name, data in inputs.items()
    ]
    return types.InferenceRequest(id="42", inputs=tensors)


@step()
def health(args):
    """The server and its models are ready."""
    server = client(args)
    server.check_server_liveness()
    server.check_server_readiness()
    server.check_model_readiness("add")
    version = server.read_model_metadata("add").versions[0]
    server.check_model_version_readiness("add", version)
    refused(lambda: server.check_model_readiness("no-such-model"), errors.NotFoundError)


@step()
def metadata(args):
    """The metadata has the form of the file."""
    server = client(args)
    metadata = server.read_server_metadata()
    holds(metadata.name and metadata.version, f"the metadata is {metadata}")
    add = server.read_model_metadata("add")
    equal((add.name, [port.name for port in add.inputs]), ("add", ["a", "b"]), "the name and the inputs")
    equal(server.read_model_version_metadata("add", add.versions[0]).name, "add", "the name")
    refused(lambda: server.read_model_metadata("no-such-model"), Exception, "404")


@step()
def inference(args):
    """A request is answered with its id, also by version."""
    server = client(args)
    version = server.read_model_metadata("add").versions[0]
    for reply in [
        server.model_infer("add", request=request(a=[1, 2], b=[30, 40])),
        server.model_version_infer("add", version, request=request(a=[1, 2], b=[30, 40])),
    ]:
        equal((reply.id, reply.model_name), ("42", "add"), "the id and the model")
        equal((reply.outputs[0].name, reply.outputs[0].shape), ("sum", [2]), "the output")
        equal(reply.outputs[0].data.__root__, [31, 42], "the sum")


@step()
def chosen_outputs(args):
    """Only the outputs that were asked for are answered."""
    rows = types.RequestInput(
        name="x", datatype="FP32", shape=[1, 4], data=types.TensorData(__root__=[1.0, 5.0, 2.0, 0.0])
    )
    wanted = [types.RequestOutput(name="argmax")]
    reply = client(args).model_infer("two-outputs", request=types.InferenceRequest(inputs=[rows], outputs=wanted))
    equal([output.name for output in reply.outputs], ["argmax"], "the outputs")
    equal(reply.outputs[0].data.__root__, [1], "argmax")


@step()
def what_is_wrong_is_told(args):
    """What a model cannot take is refused with 400, and a reason."""
    told = refused(lambda: client(args).model_infer("add", request=request(a=[1])), errors.BadRequestError)
    holds("error" in told and "b" in told, f"the reason is {told}")


@step()
async def on_asyncio(args):
    """The client for asyncio gets the same answers, many at once."""
    server = openapi.AsyncOpenInferenceClient(base_url=f"http://{args.http}", timeout=30)
    await server.check_server_readiness()

    async def ask(number):
        reply = await server.model_infer("add", request=request(a=[number], b=[1000 * number]))
        equal(reply.outputs[0].data.__root__, [1001 * number], "the sum")

    await asyncio.gather(*(ask(number) for number in range(50)))


tell(__doc__)
