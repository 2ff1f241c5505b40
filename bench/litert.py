"""LiteRT-LM beside gemwright's own engine: prefill and decoding of the demo weights on a CPU.

python bench/litert.py [--weights int8 int4] [--rounds 3]      needs the extra `export`; keep the machine otherwise idle

The engines alternate, each in a process of its own. Both read the license as a prompt and decode greedily. LiteRT-LM's
figures are its own counters; gemwright's are the times until its first and its later tokens. Prints, for each, the
median of the rounds with minimum and maximum.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPT, TOKENS, CONTEXT = 128, 128, 1024


def measure_litert_lm(path: str) -> dict[str, float]:
    """Return LiteRT-LM's own figures of one answer, after a first one that pages in the weights."""
    from litert_lm import Backend, Engine, SamplerConfig

    text = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as cache:
        engine = Engine(path, Backend.CPU(thread_count=threads), cache_dir=cache, enable_benchmark=True)
        words = text.split(" ")
        while len(engine.tokenize(" ".join(words))) > PROMPT - 1:  # BOS is added
            words = words[: max(1, len(words) * 9 // 10)]
        for _ in range(2):
            with engine.create_session(
                apply_prompt_template=False, sampler_config=SamplerConfig(top_k=1), max_output_tokens=TOKENS
            ) as session:
                session.run_prefill([" ".join(words)])
                session.run_decode()
                found = session.get_benchmark_info()
        engine.close()
    return {
        "prefill": found.last_prefill_tokens_per_second,
        "decode": found.last_decode_tokens_per_second,
        "prompt": found.last_prefill_token_count,
        "tokens": found.last_decode_token_count,
    }


def run(*arguments: str) -> dict[str, float]:
    """Run a script of this folder and return the JSON object that it prints last."""
    script, *rest = arguments
    command = [sys.executable, str(Path(__file__).with_name(script)), *rest]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_gemwright(model: str) -> dict[str, float]:
    times = run("worker.py", "gemwright", model, json.dumps({"prompt": PROMPT, "tokens": TOKENS}))["times"]
    return {"prefill": PROMPT / times[0], "decode": (TOKENS - 1) / (times[-1] - times[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["int8", "int4"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bundle:
        print(json.dumps(measure_litert_lm(arguments.bundle)))
        return

    import models

    source = models.locate_demo()
    models.write_prompt()
    engines = {"gemwright, as stored (Q4_K_M)": lambda: measure_gemwright(str(source))}
    for weights in arguments.weights:
        bundle = models.CACHE / f"gemma-3-270m-{weights}.litertlm"
        if not bundle.exists():
            options = ["--weights", weights, "--context", str(CONTEXT), "--no-verify"]
            subprocess.run(
                [sys.executable, "-m", "gemwright", "export", str(source), str(bundle), *options], check=True
            )
        engines[f"LiteRT-LM, {weights}"] = lambda path=str(bundle): run("litert.py", "--bundle", path)
    rounds = [{name: measure() for name, measure in engines.items()} for _ in range(arguments.rounds)]
    print(f"tokens/s after {PROMPT} tokens, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| engine | prefill | decode |\n|---|---|---|")
    for name in engines:
        cells = ([figures[name][part] for figures in rounds] for part in ("prefill", "decode"))
        shown = (f"{statistics.median(cell):.1f} ({min(cell):.1f} to {max(cell):.1f})" for cell in cells)
        print(f"| {name} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
