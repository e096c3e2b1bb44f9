"""What the clients' stories share: arguments, steps, and checks that say what was wrong."""

import argparse
import asyncio
import faulthandler
import inspect
import sys
import traceback

# No story takes this long, in seconds: one that does hangs, and ends with where it hangs.
LONGEST = 150

# What a server may lack, beside the core protocol and the models: extensions, services, datatypes, models.
PARTS = {
    "announced",  # the names of its extensions
    "bf16",
    "binary",
    "bytes",
    "config",
    "control",  # the repository's load and unload
    "deflate",  # over gRPC
    "echo",
    "grpc-health",
    "health-body",
    "index",  # the repository's, asked for without a body
    "reflection",
    "slow",
    "statistics",
    "stream",  # Triton's ModelStreamInfer
    "strict-contents",  # raw and typed contents in one request are refused
}

STEPS = []


def step(*needs):
    """A step of the story, told by its docstring. It is left out where the server lacks one of `needs`."""

    def register(fn):
        STEPS.append((fn, set(needs)))
        return fn

    return register


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--http", default="127.0.0.1:3000", metavar="HOST:PORT", help="the server's address")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="its address for gRPC, where that is another")
    parser.add_argument("--without", default="", metavar="PART,…", help="what the server does not have")
    args = parser.parse_args()
    args.grpc = args.grpc or args.http
    args.without = set(filter(None, args.without.split(",")))
    if unknown := args.without - PARTS:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(sorted(PARTS))}")
    return args


def tell(description):
    """Runs the steps in their order and ends the program: with 1 where one of them failed."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    args = arguments(description)
    failed = 0
    for fn, needs in STEPS:
        name = inspect.getdoc(fn).rstrip(".")
        if needs & args.without:
            print(f"skip {name}: the server has no {', '.join(sorted(needs & args.without))}")
            continue
        try:
            said = asyncio.run(fn(args)) if inspect.iscoroutinefunction(fn) else fn(args)
            print(f"ok   {name}" + (f": {said}" if said else ""), flush=True)
        except Exception:
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    if failed:
        sys.exit(f"{failed} of {len(STEPS)} steps failed")


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what} is {got!r}, not {wanted!r}")


def holds(condition, what):
    if not condition:
        raise AssertionError(what)


def refused(call, kind, *words):
    """What is told by the exception of class `kind` that `call` must raise, in which each of `words` must be."""
    try:
        answer = call()
    except kind as error:
        return told(error, words)
    raise AssertionError(f"it was answered: {answer!r:.200}")


async def refused_async(call, kind, *words):
    """As `refused`, of a coroutine."""
    try:
        answer = await call
    except kind as error:
        return told(error, words)
    raise AssertionError(f"it was answered: {answer!r:.200}")


def told(error, words):
    text = str(error)
    for word in words:
        holds(word in text, f"`{word}` is not in what was told: {text}")
    return text
