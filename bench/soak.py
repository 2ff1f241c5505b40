"""Overload `gemwright serve`, leave in the middle of replies, and compare every complete reply with the one alone.

python bench/soak.py [--minutes 60] [--slots 4] [--clients 40]

Ends with an error if a reply is lost, mixed or truncated, if the server keeps requests, or if its memory grows.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

PORT = 8095
DISCONNECTS = 0.3
"""Share of requests whose client leaves in the middle."""
CASES = 60
MAX_GROWTH = 1.1
"""Largest ratio of the memory at the end to that after the first tenth of the time."""

Case = tuple[list[int], int]
"""A prompt and the number of tokens after it."""


def make_cases() -> list[Case]:
    """Return prompts of many lengths, some of which begin alike."""
    numbers = random.Random(0)
    shared = [2, *numbers.choices(range(1000, 50_000), k=200)]
    lengths = [numbers.randrange(1, 400) for _ in range(CASES)]
    return [
        (
            [*shared[: numbers.choice([1, 1, 201])], *numbers.choices(range(1000, 50_000), k=length)],
            numbers.randrange(1, 60),
        )
        for length in lengths
    ]


async def post(body: dict[str, Any], leave_after: float | None = None) -> tuple[int, bytes]:
    """Send a completion and return the status and the body; leave early if asked to."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    payload = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n"
    writer.write((head + "Content-Type: application/json\r\nConnection: close\r\n\r\n").encode() + payload)
    try:
        reply = await asyncio.wait_for(reader.read(), leave_after)
    except TimeoutError:
        return 0, b""
    finally:
        writer.close()
    head_bytes, _, rest = reply.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), _unchunk(rest) if b"chunked" in head_bytes.lower() else rest


def _unchunk(data: bytes) -> bytes:
    parts: list[bytes] = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        parts.append(data[:length])
        data = data[length + 2 :]
        if not length:
            break
    return b"".join(parts)


def read_text(body: bytes, stream: bool) -> tuple[str, str | None]:
    """Return the text and the finish reason of a reply."""
    if not stream:
        choice = json.loads(body)["choices"][0]
        return choice["text"], choice["finish_reason"]
    text, reason = "", None
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    if lines[-1:] != [b"[DONE]"]:
        raise ValueError(f"A stream ends with {lines[-1:]}.")
    for line in lines[:-1]:
        choice = json.loads(line)["choices"][0]
        text, reason = text + choice["text"], choice["finish_reason"] or reason
    return text, reason


def request(case: Case, stream: bool) -> dict[str, Any]:
    """Return the body of a request."""
    prompt, tokens = case
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream}


async def soak(cases: list[Case], clients: int, seconds: float, pid: int) -> Counter[str]:
    """Run clients for a time and count what happens."""
    expected = [read_text((await post(request(case, False)))[1], False) for case in cases]
    counts, end, numbers = Counter[str](), time.monotonic() + seconds, random.Random(1)
    memory: list[int] = []

    async def client() -> None:
        while time.monotonic() < end:
            index, stream = numbers.randrange(len(cases)), numbers.random() < 0.5
            leave = numbers.expovariate(2.0) if numbers.random() < DISCONNECTS else None
            status, body = await post(request(cases[index], stream), leave)
            if status == 0:
                counts["left"] += 1
            elif status == 429:
                counts["refused (429)"] += 1
                await asyncio.sleep(numbers.random())
            elif status != 200:
                counts[f"status {status}"] += 1
            elif read_text(body, stream) == expected[index]:
                counts["equal"] += 1
            else:
                counts["different"] += 1

    async def watch() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(seconds / 20)
            memory.append(resident(pid))

    await asyncio.gather(watch(), *(client() for _ in range(clients)))
    counts["memory growth, %"] = round(100 * memory[-1] / memory[len(memory) // 10] - 100)
    return counts


def resident(pid: int) -> int:
    """Return the memory of a process in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def metric(name: str) -> float:
    """Return a number of the server."""
    lines = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics").read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Overload gemwright serve.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--model", default="gemma-3-270m")
    options = parser.parse_args()
    command = [sys.executable, "-m", "gemwright", "serve", "--model", options.model, "--port", str(PORT)]
    command += ["--context", "1024", "--slots", str(options.slots), "--max-queue", str(options.clients * 3 // 4)]
    server = subprocess.Popen(command)
    try:
        while True:
            time.sleep(1)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz")
                break
            except OSError:
                if server.poll() is not None:
                    return 1
        counts = asyncio.run(soak(make_cases(), options.clients, 60 * options.minutes, server.pid))
        time.sleep(2)
        left = {name: metric(f"gemwright_num_requests_{name}") for name in ("running", "waiting")}
    finally:
        server.terminate()
        server.wait(60)
    print(dict(counts), left)
    bad = [name for name in counts if name == "different" or name.startswith("status")]
    return int(bool(bad or any(left.values()) or counts["memory growth, %"] > 100 * (MAX_GROWTH - 1)))


if __name__ == "__main__":
    sys.exit(main())
