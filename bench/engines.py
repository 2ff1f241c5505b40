"""What each engine does in a process of its own: load the weights, then time decoding and the reading of a prompt.

python bench/engines.py ENGINE MODEL      prints one JSON object
python bench/engines.py ENGINE MODEL --first-token      writes the first token of a text and stops
"""

import json
import sys
import time
from collections.abc import Callable

PROMPT = "Once upon a time"
PREFILL = 512
DECODED = 64


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def gemwright(path: str, dtype: str | None = None) -> dict[str, Callable[[], object]]:
    import gemwright

    model = gemwright.load(path, dtype=dtype)
    engine, greedy = model.engine, gemwright.Sampling()

    def decode(prompt: list[int], tokens: int) -> None:
        for _ in engine.generate([prompt], [greedy], tokens):
            pass

    return {
        "first": lambda: print(model.generate(PROMPT, max_tokens=1, temperature=0.0).text, flush=True),
        "decode": lambda: decode(model.encode(PROMPT), DECODED),
        "prefill": lambda: decode([2] * PREFILL, 1),
        "one": lambda: decode(model.encode(PROMPT), 1),
    }


def llama_cpp(path: str) -> dict[str, Callable[[], object]]:
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params
    if "amx" in open("/proc/cpuinfo").read():
        # This release crashes on these machines when it repacks weights for AMX.
        def without_extra_buffers() -> llama_cpp.llama_model_params:
            changed = parameters()
            changed.use_extra_bufts = False
            return changed

        llama_cpp.llama_cpp.llama_model_default_params = without_extra_buffers
    model = llama_cpp.Llama(path, n_ctx=1024, n_batch=512, n_ubatch=512, verbose=False, n_threads=THREADS)

    def decode(prompt: list[int], tokens: int) -> None:
        model.reset()
        stream = model.generate(prompt, temp=0.0, reset=True)
        for _ in range(tokens):
            next(stream)

    def first() -> None:
        print(model(PROMPT, max_tokens=1, temperature=0.0)["choices"][0]["text"], flush=True)

    ids = model.tokenize(PROMPT.encode())
    return {
        "first": first,
        "decode": lambda: decode(ids, DECODED),
        "prefill": lambda: decode([2] * PREFILL, 1),
        "one": lambda: decode(ids, 1),
    }


def transformers(path: str, dtype: str = "float32") -> dict[str, Callable[[], object]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids

    @torch.inference_mode()
    def decode(ids: torch.Tensor, tokens: int) -> torch.Tensor:
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )

    return {
        "first": lambda: print(tokenizer.decode(decode(prompt, 1)[0, -1]), flush=True),
        "decode": lambda: decode(prompt, DECODED),
        "prefill": lambda: decode(torch.full((1, PREFILL), 2), 1),
        "one": lambda: decode(prompt, 1),
    }


ENGINES: dict[str, Callable[[str], dict[str, Callable[[], object]]]] = {
    "gemwright": gemwright,
    "llama.cpp": llama_cpp,
    "transformers float32": transformers,
    "transformers bfloat16": lambda path: transformers(path, "bfloat16"),
}


def main() -> None:
    name, path = sys.argv[1:3]
    tasks = ENGINES[name](path)
    if "--first-token" in sys.argv:
        tasks["first"]()
        return
    for task in ("prefill", "decode", "one"):
        tasks[task]()  # compiles, and touches the weights
    one = min(timed(tasks["one"]) for _ in range(3))
    decode = min(timed(tasks["decode"]) for _ in range(3))
    prefill = min(timed(tasks["prefill"]) for _ in range(3))
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(
        json.dumps(
            {
                "decode": (DECODED - 1) / (decode - one),
                "prefill": PREFILL / prefill,
                "peak": int(peak.split()[1]) * 1024,
            }
        )
    )


if __name__ == "__main__":
    import os

    THREADS = len(os.sched_getaffinity(0))
    main()
