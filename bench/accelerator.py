"""Check gemwright's results on this machine's GPU or TPU, measure its speed, and compare with transformers.

Each section runs in its own process and appends JSON lines; tables in Markdown follow at the end. The exit code is 1 if
a parity check or a section failed, 2 without an accelerator.

    python bench/accelerator.py [--minutes 10] [--out FILE] [--section parity] [--tiny]
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from device import plan
from device.journal import Journal, Record

OUT = Path(__file__).parent / ".cache" / "accelerator.jsonl"
SECTIONS = ("parity", "speed", "transformers")
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",  # the largest training step needs more than the usual three quarters
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
TINY_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="total time")
    parser.add_argument("--out", type=Path, default=OUT, help="file of JSON lines, overwritten")
    parser.add_argument("--section", choices=SECTIONS, action="append", help="run these sections only")
    parser.add_argument("--tiny", action="store_true", help="check on the CPU that everything runs")
    parser.add_argument("--child", nargs=3, metavar=("SECTION", "MODEL", "DEADLINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        section, model, deadline = arguments.child
        return run_section(section, model, Journal(arguments.out, float(deadline), {}), arguments.tiny)

    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("")
    journal = Journal(arguments.out, time.time() + 60 * arguments.minutes, {})
    works = plan.TINY if arguments.tiny else plan.WORKS
    wanted = arguments.section or list(SECTIONS)
    tasks = [("device", "")] + [("parity", "")] * ("parity" in wanted)
    tasks += [(section, work.model) for work in works for section in SECTIONS[1:] if section in wanted]
    broken = False
    for section, model in tasks:
        code = start(section, model, journal, arguments.tiny)
        if section == "device" and code:
            return code
        broken |= code != 0
    show(journal)
    return int(broken or any(record["result"] == "FAIL" for record in journal.read("parity")))


def start(section: str, model: str, journal: Journal, tiny: bool) -> int:
    """Run a section in a process, terminated when the time is up; return its exit code."""
    what = f"{section} {model}".strip()
    if not journal.has_time(what):
        return 0
    left = journal.deadline - time.time()
    print(f"\n{what}, {left:.0f} s left", flush=True)
    command = [sys.executable, __file__, "--out", str(journal.path), "--child", section, model, str(journal.deadline)]
    environment = (
        ENVIRONMENT | os.environ | {"JAX_PLATFORMS": choose_platforms(section)} | (TINY_ENVIRONMENT if tiny else {})
    )
    begun = time.time()
    try:
        code = subprocess.run(command + ["--tiny"] * tiny, env=environment, timeout=left, check=False).returncode
    except subprocess.TimeoutExpired:
        journal.write("skipped", what=f"the rest of {what}", why="no time left")
        return 0
    journal.write("section", what=what, seconds=time.time() - begun, exit_code=code)
    return code


def choose_platforms(section: str) -> str:
    """Return JAX's platforms: the CPU for the reference, and nothing else if torch needs the device's memory."""
    wanted = "cpu" if section == "transformers" else os.environ.get("JAX_PLATFORMS", "")
    return wanted if not wanted or "cpu" in wanted else f"{wanted},cpu"


def run_section(section: str, model: str, journal: Journal, tiny: bool) -> int:
    if section == "device":
        import jax

        if jax.default_backend() == "cpu" and not tiny:
            print("JAX finds no accelerator; use --tiny, or install jax[cuda12] or jax[tpu].")
            return 2
        from device import speed

        speed.describe(journal)
    elif section == "parity":
        from device import parity

        parity.run(journal)
    elif section == "speed":
        from device import speed

        speed.run(journal, model, tiny)
    else:
        from device import peer

        peer.run(journal, model, tiny)
    return 0


def show(journal: Journal) -> None:
    """Print all records as Markdown."""
    for title, kind in (("Device", "device"), ("Peer", "peer")):
        for record in journal.read(kind)[:1]:
            facts = ", ".join(f"{key} {value}" for key, value in record.items() if value is not None and key != "kind")
            print(f"\n{title}: {facts}")
    show_table(
        "Parity with XLA on the CPU in float32: largest absolute error",
        ("architecture", "dtype", "check", "error", "tolerance", "result"),
        [
            (r["case"], r["dtype"], r["check"], f"{r['error']:.2g}", f"{r['tolerance']:.2g}", r["result"])
            for r in sorted(journal.read("parity"), key=lambda r: (r["dtype"] != "float32", r["case"]))
        ],
    )
    show_table(
        "Measured peaks",
        ("before", "copy, GB/s", "read, GB/s", "bfloat16 product, TFLOP/s"),
        [
            (
                r["model"],
                f"{r['copy_bytes_per_s'] / 1e9:.4g}",
                f"{r['read_bytes_per_s'] / 1e9:.4g}",
                f"{r['bfloat16_flops_per_s'] / 1e12:.4g}",
            )
            for r in journal.read("peaks")
        ],
    )
    show_table(
        "bfloat16, random weights",
        ("model", "task", "sequences", "engine", "tokens/s", "share of the measured peak"),
        [
            (
                r["model"],
                r["task"],
                r["batch"],
                r["engine"],
                f"{r['tokens_per_s']:.4g}",
                f"{r['share']:.2%} of {r['of']}",
            )
            for r in sorted(journal.read("figure"), key=_order)
        ],
    )
    for record in journal.read("skipped"):
        print("Skipped: " + ", ".join(str(value) for key, value in record.items() if key != "kind"))


def show_table(title: str, head: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    print(f"\n### {title}\n")
    for row in (head, ("---",) * len(head), *rows):
        print("| " + " | ".join(map(str, row)) + " |")


def _order(record: Record) -> tuple[int, str, int]:
    models = [work.model for work in (*plan.WORKS, *plan.TINY)]
    return models.index(record["model"]), record["task"], record["batch"]


if __name__ == "__main__":
    sys.exit(main())
