"""perf_analyzer, Triton's load generator, over HTTP and gRPC."""

import os
import re
import subprocess
from pathlib import Path

from story import holds, step, tell

PROGRAM = Path(__file__).resolve().parents[2] / "target/clients/perf_analyzer/perf_analyzer"

# How long one measurement takes, in milliseconds, and how many are made.
WINDOW, TRIALS = 700, 3


def measure(protocol, address, *more):
    """Inferences a second by concurrency, of the digits model."""
    command = [PROGRAM, "-m", "digits", "-i", protocol, "-u", address, "--service-kind", "triton"]
    command += ["--shape", "image:1,1,8,8", "--concurrency-range", "1:4:3", "--max-threads", "4"]
    # A busy machine gives no steady numbers: that there are some is enough.
    command += ["-p", str(WINDOW), "-r", str(TRIALS), "-s", "999", *more]
    environment = os.environ | {"LD_LIBRARY_PATH": str(PROGRAM.parent / "lib")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = run.stdout + run.stderr
    holds(run.returncode == 0, f"it ended with {run.returncode}:\n{said}")
    pairs = re.findall(r"Concurrency: (\d+), throughput: ([0-9.]+) infer/sec", said)
    throughput = {int(concurrency): float(rate) for concurrency, rate in pairs}
    holds(set(throughput) == {1, 4}, f"there is no throughput for both:\n{said}")
    holds(all(rate > 0 for rate in throughput.values()), f"nothing was inferred:\n{said}")
    holds(not re.search(r"(?i)\b(failed|errors?)\b", said), f"there were errors:\n{said}")
    return ", ".join(f"{rate:.0f} a second at concurrency {at}" for at, rate in throughput.items())


@step("config", "statistics")
def over_http(args):
    """HTTP, with tensors in binary."""
    return measure("http", args.http)


@step("config", "statistics")
def over_http_in_json(args):
    """HTTP, with tensors in JSON."""
    return measure("http", args.http, "--input-tensor-format", "json", "--output-tensor-format", "json")


@step("config", "statistics")
def over_grpc(args):
    """gRPC."""
    return measure("grpc", args.grpc)


@step("config", "statistics", "stream")
def over_a_stream(args):
    """gRPC, on a stream."""
    return measure("grpc", args.grpc, "--streaming", "--async")


tell(__doc__)
