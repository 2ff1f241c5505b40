"""Compare `gemwright serve` with llama.cpp's server on this machine, in one run.

Clients in a closed loop send the same token ids to both, greedily and with `ignore_eos`; the servers alternate. A third
column runs the same arrivals through the scheduler without HTTP. Prints tables in Markdown, medians of the rounds.

    python bench/serve.py --llama-server PATH [--clients 1 8 16] [--rounds 3] [--quick]

llama-server is compiled for this machine from llama.cpp's sources (docs/serve.md).
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import models

HERE = Path(__file__).parent
THREADS = len(os.sched_getaffinity(0))
VOCABULARY = range(1000, 50_000)
NAMES = ("gemwright", "llama-server", "in process")


@dataclass(frozen=True)
class Load:
    """Clients that each send one request after another.

    Attributes:
        clients: Number of clients.
        prompt: Tokens of a prompt.
        tokens: Tokens of a text.
        requests: Number of requests of all clients.
        shared: Tokens that all prompts begin with.
    """

    clients: int
    prompt: int
    tokens: int
    requests: int
    shared: int = 0

    def prompts(self, seed: int) -> list[list[int]]:
        """Return the prompts, which are never the same in two runs."""
        random_ids, first = random.Random(seed), [2, *random.Random(0).choices(VOCABULARY, k=self.shared)]
        rest = self.prompt - len(first)
        return [[*first, *random_ids.choices(VOCABULARY, k=rest)] for _ in range(self.requests)]


@dataclass
class Timing:
    """When the parts of a text came, in seconds since its request."""

    arrivals: list[float] = field(default_factory=list)

    def first(self) -> float:
        """Return the time to the first token."""
        return self.arrivals[0]

    def per_token(self, tokens: int) -> float:
        """Return the mean time between tokens."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(tokens - 1, 1)


async def request(port: int, body: dict[str, Any]) -> Timing:
    """Send a streaming completion; a plain socket costs the machine least."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    payload = json.dumps(body | {"stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n"
    writer.write((head + "Content-Type: application/json\r\nConnection: close\r\n\r\n").encode() + payload)
    start, timing = time.perf_counter(), Timing()
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            if b'"error"' in line[:20]:
                raise RuntimeError(line.decode())
            timing.arrivals.append(time.perf_counter() - start)
    writer.close()
    if not timing.arrivals:
        raise RuntimeError("A reply has no text.")
    return timing


async def run_clients(load: Load, prompts: list[list[int]], send: Any) -> dict[str, float]:
    """Run a load and return its measures."""
    queue, timings = iter(prompts), list[Timing]()

    async def client() -> None:
        for prompt in queue:
            timings.append(await send(prompt, load.tokens))

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(load.clients)))
    seconds = time.perf_counter() - start
    return {
        "tokens/s": load.requests * load.tokens / seconds,
        **_percentiles("TTFT", [timing.first() for timing in timings]),
        **_percentiles("TPOT", [timing.per_token(load.tokens) for timing in timings]),
        **_percentiles("E2E", [timing.arrivals[-1] for timing in timings]),
        "client": (time.process_time() - cpu) / seconds,
    }


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"{name} p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 90, 99)}


async def run_turn(load: Load, seed: int, send: Any) -> dict[str, float]:
    """Return the time to the first token of a prompt, and of the same prompt with 32 more tokens."""
    prompt = load.prompts(seed)[0]
    first = await send(prompt, load.tokens)
    second = await send([*prompt, *random.Random(seed).choices(VOCABULARY, k=32)], load.tokens)
    return {"TTFT of the first turn": first.first(), "TTFT of the second": second.first()}


async def run_mixed(load: Load, seed: int, send: Any) -> dict[str, float]:
    """Return the longest gap between the tokens of running texts, before and after a long prompt arrives."""
    short = [prompt[:100] for prompt in load.prompts(seed)]
    texts = [asyncio.ensure_future(send(prompt, load.tokens)) for prompt in short]
    await asyncio.sleep(2.0)
    long = asyncio.ensure_future(send(load.prompts(seed + 1)[0], 1))
    timings = await asyncio.gather(*texts)
    gaps = [later - sooner for timing in timings for sooner, later in pairwise(timing.arrivals[len(short) :])]
    return {"longest gap": max(gaps), "TTFT of the long prompt": (await long).first()}


def client_main(port: int, load: Load, seed: int, cache: bool, kind: str) -> None:
    """Run clients against a server, in this process; prints the measures."""

    async def send(prompt: list[int], tokens: int) -> Timing:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": cache}
        return await request(port, body | ({} if cache else {"cache_salt": str(random.random())}))

    runs = {
        "clients": lambda: run_clients(load, load.prompts(seed), send),
        "turn": lambda: run_turn(load, seed, send),
        "mixed": lambda: run_mixed(load, seed, send),
    }
    print(json.dumps(asyncio.run(runs[kind]())))


def engine_main(context: int, slots: int) -> None:
    """Run loads through a scheduler without HTTP, one for each line of standard input."""
    import gemwright
    from gemwright.generate.sampling import Sampling
    from gemwright.serve.batching.request import GenerationRequest
    from gemwright.serve.batching.scheduler import Limits, Scheduler

    scheduler = Scheduler(gemwright.load("gemma-3-270m"), Limits(context=context, slots=slots))
    for _ in scheduler.warm_up():
        pass
    scheduler.start()

    async def send(prompt: list[int], tokens: int, salt: str = "") -> Timing:
        start, timing = time.perf_counter(), Timing()
        async with scheduler.submit(GenerationRequest(prompt, Sampling(), tokens, cache_salt=salt)) as generation:
            async for _ in generation:
                timing.arrivals.append(time.perf_counter() - start)
        return timing

    print("ready", flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        load, cache = Load(**given["load"]), given["cache"]

        async def salted(prompt: list[int], tokens: int, cache: bool = cache) -> Timing:
            return await send(prompt, tokens, "" if cache else str(random.random()))

        print(json.dumps(asyncio.run(run_clients(load, load.prompts(given["seed"]), salted))), flush=True)


@dataclass
class Server:
    """A process under test.

    Attributes:
        name: Its column.
        process: The process.
        port: Its port; None without HTTP.
    """

    name: str
    process: subprocess.Popen[str]
    port: int | None

    def run(self, load: Load, seed: int, cache: bool, kind: str = "clients") -> dict[str, float]:
        """Run a load and return its measures."""
        if self.port is None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            given = {"load": load.__dict__, "seed": seed, "cache": cache}
            print(json.dumps(given), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        arguments = [str(self.port), json.dumps(load.__dict__), str(seed), str(int(cache)), kind]
        client = subprocess.run([sys.executable, __file__, "--client", *arguments], check=True, stdout=subprocess.PIPE)
        return json.loads(client.stdout)

    def peak(self) -> float:
        """Return the peak of its memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


@contextmanager
def start(name: str, command: list[str], port: int | None) -> Iterator[Server]:
    """Start a process and wait until it is ready."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE if port is None else subprocess.DEVNULL, text=True
    )
    try:
        if port is None:
            assert process.stdout is not None
            process.stdout.readline()
        else:
            _wait(process, f"http://127.0.0.1:{port}/health")
        yield Server(name, process, port)
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[str], url: str) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError("The server ended.")
        try:
            urllib.request.urlopen(url)
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("The server is not ready.")


@contextmanager
def start_all(llama_server: Path | None, context: int, slots: int) -> Iterator[list[Server]]:
    """Start the servers."""
    limits = ["--context", str(context), "--slots", str(slots)]
    ours = [sys.executable, "-m", "gemwright", "serve", "--port", "8091", "--threads", str(THREADS), *limits]
    with ExitStack() as stack:
        servers = [stack.enter_context(start(NAMES[0], ours, 8091))]
        if llama_server is not None:
            theirs = [str(llama_server), "-m", str(models.locate_demo()), "--port", "8092", "-t", str(THREADS)]
            theirs += ["-c", str(context * slots), "-np", str(slots), "--log-disable"]
            servers.append(stack.enter_context(start(NAMES[1], theirs, 8092)))
        engine = [sys.executable, __file__, "--engine", str(context), str(slots)]
        servers.append(stack.enter_context(start(NAMES[2], engine, None)))
        yield servers


def show(title: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians of a load."""
    print(f"\n{title}\n")
    columns = list(next(iter(found.values()))[0])
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, results in found.items():
        medians = [statistics.median(result[column] for result in results) for column in columns]
        print(f"| {name} | {' | '.join(f'{value:.1f}' if value >= 10 else f'{value:.3f}' for value in medians)} |")
    sys.stdout.flush()


def list_loads(options: argparse.Namespace, caches: list[bool]) -> Iterator[tuple[str, Load, bool, str]]:
    """Yield a title, the load, whether the prefix cache is on, and the kind of each measurement."""
    for cache in caches:
        for prompt, tokens, clients in product(options.prompts, options.texts, options.clients):
            load = Load(clients, prompt, tokens, max(4, 3 * clients), prompt // 2 if cache else 0)
            title = f"{clients} clients, prompts of {prompt} tokens, texts of {tokens}, prefix cache "
            yield title + (f"on, {load.shared} tokens shared" if cache else "off"), load, cache, "clients"
    turn = Load(1, 1024, 8, 1)
    yield "A second turn after 1,024 tokens, prefix cache on", turn, True, "turn"
    yield "A second turn after 1,024 tokens, prefix cache off", turn, False, "turn"
    long = options.context - 64
    yield f"A prompt of {long} tokens arrives while 7 texts are decoded", Load(7, long, 128, 7), False, "mixed"


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["--client"]:
        port, load, seed, cache, kind = sys.argv[2:]
        client_main(int(port), Load(**json.loads(load)), int(seed), cache == "1", kind)
        return
    if sys.argv[1:2] == ["--engine"]:
        engine_main(int(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description="Compare gemwright serve with llama-server.")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--texts", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--cache", choices=("off", "on", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--slots", type=int, default=16)
    options = parser.parse_args()
    caches = {"off": [False], "on": [True], "both": [False, True]}[options.cache]
    with start_all(options.llama_server, options.context, options.slots) as servers:
        for number, (title, load, cache, kind) in enumerate(list_loads(options, caches)):
            among = servers if kind == "clients" else [server for server in servers if server.port is not None]
            found: dict[str, list[dict[str, float]]] = {server.name: [] for server in among}
            for round_ in range(options.rounds):
                for server in among:
                    found[server.name].append(server.run(load, 1000 * number + round_, cache, kind))
            show(title, found)
        print("\n" + ", ".join(f"{server.name}: peak {server.peak():.0f} MB" for server in servers))


if __name__ == "__main__":
    main()
