"""tritonclient's streams over gRPC, in threads."""

import queue

import numpy as np
import tritonclient.grpc as grpc
from tensors import same

from story import equal, holds, step, tell


def given(name, array):
    tensor = grpc.InferInput(name, list(array.shape), "INT64")
    tensor.set_data_from_numpy(array)
    return tensor


def addends(number):
    return [given("a", np.array([number], np.int64)), given("b", np.array([1000 * number], np.int64))]


class Stream:
    """A stream whose answers are taken from a queue."""

    def __init__(self, args):
        self.server = grpc.InferenceServerClient(args.grpc)
        self.answers = queue.Queue()
        self.server.start_stream(lambda result, error: self.answers.put((result, error)), stream_timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop_stream()
        self.server.close()

    def ask(self, number, inputs=None, model="add"):
        self.server.async_stream_infer(model, inputs or addends(number), request_id=str(number))

    def answer(self):
        return self.answers.get(timeout=60)


@step("stream")
def in_order(args):
    """Many requests on one stream are answered in their order."""
    with Stream(args) as stream:
        for number in range(500):
            stream.ask(number)
        for number in range(500):
            result, error = stream.answer()
            holds(error is None, f"request {number}: {error}")
            equal(result.get_response().id, str(number), "the id")
            same(result.as_numpy("sum"), np.array([1001 * number]), "the sum")


@step("stream")
def errors_in_between(args):
    """What is wrong on a stream is told in its place, and the stream goes on."""
    with Stream(args) as stream:
        stream.ask(1)
        stream.ask(2, inputs=addends(2)[:1])
        stream.ask(3, model="no-such-model")
        stream.ask(4)
        for number, word in [(1, None), (2, "b"), (3, "no-such-model"), (4, None)]:
            result, error = stream.answer()
            if word:
                holds(error is not None and word in str(error), f"request {number}: {error}")
            else:
                holds(error is None, f"request {number}: {error}")
                same(result.as_numpy("sum"), np.array([1001 * number]), "the sum")


@step("stream")
def several_streams(args):
    """Answers of several streams do not mix."""
    with Stream(args) as first, Stream(args) as second:
        for number in range(100):
            first.ask(number)
            second.ask(1000 + number)
        for stream, offset in [(first, 0), (second, 1000)]:
            for number in range(100):
                result, error = stream.answer()
                holds(error is None, f"request {number}: {error}")
                same(result.as_numpy("sum"), np.array([1001 * (offset + number)]), "the sum")


@step("stream")
def left_early(args):
    """A stream that is left with requests under way does not keep the server from the next."""
    for _ in range(5):
        with Stream(args) as stream:
            for number in range(50):
                stream.ask(number)
            stream.answer()
    with Stream(args) as stream:
        stream.ask(5)
        same(stream.answer()[0].as_numpy("sum"), np.array([5005]), "the sum")


tell(__doc__)
