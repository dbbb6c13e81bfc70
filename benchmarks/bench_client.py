"""
What does it cost to ask a server: CPU time per request, and how many requests a second one process can send?

A simulated server in a process of its own answers at once; one client after another keeps 1 to 4,096 requests in flight
with 200-word prompts. CPU time is this process's, user and system; the server's is not counted. Read the ratios: on a
machine with few cores the server and the client share them. ``*`` marks a client's own goal missed.

Beside the package's clients stand the bare HTTP libraries, without an LLM client around them, and wrk, a load generator
in C, as the limit; those that are not installed are left out. Last comes one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from _report import make_parser, show

from nemo_llm_stage import AsyncHTTPClient, AsyncOpenAIClient, GenerationConfig
from nemo_llm_stage.client.http.http1 import HTTP1Transport
from nemo_llm_stage.client.http.transport import TransportConfig
from nemo_llm_stage.testing import SimulatedServerProcess

GOAL_US = 150.0
"""Of AsyncHTTPClient, at 64 and at 1,024 in flight."""

LAST_S = 5.0
"""The last requests of a round get so long; what is left then is cancelled."""

IN_FLIGHT = (1, 16, 64, 256, 1024, 4096)
MESSAGES = [{"role": "user", "content": "Judge this text: " + "curation " * 200}]
CONFIG = GenerationConfig(max_tokens=64)
BODY = orjson.dumps({"model": "sim", "messages": MESSAGES, "max_tokens": 64, "temperature": 0})
HEADERS = {"content-type": "application/json", "authorization": "Bearer none"}

Ask = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Cell:
    """One client at one number of requests in flight: medians over the rounds."""

    client: str
    in_flight: int
    cpu_us: float
    requests_per_s: float


@asynccontextmanager
async def our_client(base_url: str, in_flight: int) -> AsyncIterator[Ask]:
    """AsyncHTTPClient, as the stage calls it."""
    client = AsyncHTTPClient(base_url, max_concurrent_requests=in_flight, max_retries=0)
    yield lambda: client.complete(messages=MESSAGES, model="sim", generation_config=CONFIG)
    await client.aclose()


@asynccontextmanager
async def our_transport(base_url: str, in_flight: int) -> AsyncIterator[Ask]:
    """What AsyncHTTPClient sends with, bare."""
    transport = HTTP1Transport(TransportConfig(HEADERS, 60.0, 10.0, None, 1 << 20))
    yield lambda: transport.send(f"{base_url}/chat/completions", BODY)
    await transport.aclose()


@asynccontextmanager
async def sdk(base_url: str, in_flight: int, **kwargs: Any) -> AsyncIterator[Ask]:
    """AsyncOpenAIClient on the transport that the SDK brings."""
    client = AsyncOpenAIClient(in_flight, max_retries=0, base_url=base_url, api_key="none", **kwargs)
    yield lambda: client.complete(messages=MESSAGES, model="sim", generation_config=CONFIG)
    await client.aclose()


@asynccontextmanager
async def sdk_on_aiohttp(base_url: str, in_flight: int) -> AsyncIterator[Ask]:
    """AsyncOpenAIClient on the SDK's aiohttp transport."""
    from openai import DefaultAioHttpClient

    async with sdk(base_url, in_flight, http_client=DefaultAioHttpClient()) as ask:
        yield ask


@asynccontextmanager
async def bare_aiohttp(base_url: str, in_flight: int) -> AsyncIterator[Ask]:
    """The aiohttp library, with orjson."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=HEADERS) as session:

        async def ask() -> None:
            async with session.post(f"{base_url}/chat/completions", data=BODY) as response:
                orjson.loads(await response.read())

        yield ask


@asynccontextmanager
async def bare_pyreqwest(base_url: str, in_flight: int) -> AsyncIterator[Ask]:
    """The pyreqwest library (Rust), with orjson."""
    from pyreqwest.client import ClientBuilder

    async with ClientBuilder().http1_only().no_proxy().build() as client:

        async def ask() -> None:
            request = client.post(f"{base_url}/chat/completions").headers(HEADERS).body_bytes(BODY)
            async with request.build_streamed() as response:
                orjson.loads(memoryview(await response.body_reader.bytes()))

        yield ask


CLIENTS: dict[str, tuple[Callable[[str, int], Any], str]] = {
    "AsyncHTTPClient": (our_client, "httptools"),
    "AsyncOpenAIClient": (sdk, "openai"),
    "AsyncOpenAIClient, aiohttp": (sdk_on_aiohttp, "aiohttp"),
    "bare: our transport": (our_transport, "httptools"),
    "bare: pyreqwest": (bare_pyreqwest, "pyreqwest"),
    "bare: aiohttp": (bare_aiohttp, "aiohttp"),
}


async def measure(
    make: Callable[[str, int], Any], base_url: str, in_flight: int, seconds: float
) -> tuple[float, float]:
    """Return CPU microseconds per request, and requests per second, once the connections are open."""
    num_done, is_over, are_open = 0, False, asyncio.Event()

    async def keep_asking(ask: Ask) -> None:
        nonlocal num_done
        try:
            while not is_over:
                await ask()
                num_done += 1
                if num_done >= min(in_flight, 1000):
                    are_open.set()
        finally:
            are_open.set()

    async with make(base_url, in_flight) as ask:
        tasks = [asyncio.create_task(keep_asking(ask)) for _ in range(in_flight)]
        await are_open.wait()
        done_before, cpu_before_s, started_s = num_done, time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        num, cpu_s, wall_s = num_done - done_before, time.process_time() - cpu_before_s, time.monotonic() - started_s
        is_over = True
        done, left = await asyncio.wait(tasks, timeout=LAST_S)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for task in done:
            task.result()
    return cpu_s / max(num, 1) * 1e6, num / wall_s


def measure_wrk(base_url: str, in_flight: int, seconds: float) -> tuple[float, float]:
    """Return the same of wrk."""
    script = f"wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = {BODY.decode()!r}\n"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{in_flight}", f"-d{max(1, round(seconds))}s", "-s", file.name]
        output = subprocess.run([*command, f"{base_url}/chat/completions"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    num = int(re.findall(r"(\d+) requests in", output.stdout)[0])
    return cpu_s / max(num, 1) * 1e6, float(re.findall(r"Requests/sec:\s+([\d.]+)", output.stdout)[0])


def measure_client(name: str, base_url: str, in_flight: int, options: argparse.Namespace) -> Cell:
    """Return the medians of `name` over the rounds."""
    rounds = []
    for _ in range(options.rounds):
        if name == "wrk (C)":
            rounds.append(measure_wrk(base_url, in_flight, options.seconds))
        else:
            with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
                rounds.append(runner.run(measure(CLIENTS[name][0], base_url, in_flight, options.seconds)))
    cpu_us, requests_per_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Cell(name, in_flight, round(cpu_us, 1), round(requests_per_s))


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop called `name`."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def allow_connections(num: int) -> None:
    """Have as many open files as `num` connections need, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * num + 500
    if soft < wanted:
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--in-flight", type=int, nargs="+", default=IN_FLIGHT, metavar="N", help=f"default {IN_FLIGHT}")
    parser.add_argument("--clients", nargs="+", metavar="WORD", help="only clients with one of these in their names")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured in each round (2)")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts (3)")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="event loop (uvloop)")
    parser.add_argument("--base-url", help="another server that answers at once, instead of the simulated one")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse_options()
    names = [name for name, (_, package) in CLIENTS.items() if importlib.util.find_spec(package)]
    names += ["wrk (C)"] if shutil.which("wrk") else []
    if options.clients:
        names = [name for name in names if any(word.lower() in name.lower() for word in options.clients)]
    allow_connections(max(options.in_flight))
    cells: list[Cell] = []
    with SimulatedServerProcess(max_num_seqs=max(options.in_flight), max_recorded=0) as server:
        for name in names:
            for in_flight in options.in_flight:
                cells.append(measure_client(name, options.base_url or server.base_url, in_flight, options))
                print(f"{name}, {in_flight} in flight: {cells[-1].cpu_us} µs", file=sys.stderr)
    by_place = {(cell.client, cell.in_flight): cell for cell in cells}
    show(
        "client",
        options=options,
        columns=["CPU µs per request (requests/s)", *(f"{in_flight:,} in flight" for in_flight in options.in_flight)],
        rows=[[name, *(told(by_place[name, num]) for num in options.in_flight)] for name in names],
        results=[asdict(cell) for cell in cells],
        notes=[f"Goal of AsyncHTTPClient at 64 and 1,024 in flight: {GOAL_US:g} µs. Event loop: {options.loop}."],
    )


def told(cell: Cell) -> str:
    """A cell as it is to be read."""
    is_missed = cell.client == "AsyncHTTPClient" and cell.in_flight in {64, 1024} and cell.cpu_us > GOAL_US
    return f"{cell.cpu_us:,.0f}{'*' if is_missed else ''} ({cell.requests_per_s:,.0f})"


if __name__ == "__main__":
    main()
