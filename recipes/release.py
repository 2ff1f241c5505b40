"""Filter data, tune the 270M on them, evaluate it, and make a release that passes its own checks, without uploading it.

python recipes/release.py train.jsonl --data evaluation-sets --out example

Every step is a command of `gemwright`, which is printed before it runs; run the same again to continue after an
interruption. The folder of evaluation sets has the files of OpenBookQA (docs/eval.md) and CrowS-Pairs (docs/safety.md).
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

STEPS = 30
ITEMS = 100
"""Number of items of each benchmark and suite, and of documents of the audit."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a release of a tuned model.")
    parser.add_argument("train", type=Path, help="training data")
    parser.add_argument("--data", type=Path, required=True, help="folder of evaluation sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="gemma-3-270m", help="path, name or hub id")
    parser.add_argument("--base", default="google/gemma-3-270m", help="hub id of the model")
    parser.add_argument("--answers", type=Path, help="file of answers for the card (docs/release.md)")
    parser.add_argument("--to", default="hub:someone/gemma-3-270m-tuned", help="where it would be published")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of steps")
    parser.add_argument("--length", type=int, default=256, help="number of tokens of a sequence")
    parser.add_argument("--items", type=int, default=ITEMS, help="number of items of each evaluation")
    options = parser.parse_args()
    release(options)


def release(options: argparse.Namespace) -> None:
    """Run the commands one after another."""
    out, adapter, limit = options.out, options.out / "run" / "adapter", ["--limit", options.items]
    sets, results = options.data, out / "results"
    run("filter", options.train, "--out", out / "clean", "--steps", "personal,exact")
    tuning = ("--steps", options.steps, "--length", options.length, "--batch-size", 2)
    run("tune", options.model, out / "clean" / "data", "--out", out / "run", *tuning)
    for name, model in (("base", options.model), ("tuned", adapter)):
        run("eval", model, "--tasks", "openbookqa", "--data", sets, "--out", results / f"{name}-benchmarks", *limit)
    suites = ("--suite", "safety", "--tasks", "crows-pairs")
    run("eval", adapter, *suites, "--data", sets, "--out", results / "tuned-safety", *limit)
    run("memorize", adapter, out / "clean" / "data", "--out", results / "memorization", *limit)
    shutil.rmtree(out / "release", ignore_errors=True)
    recorded = ("--records", results, "--records", out / "clean")
    answers = ("--answers", options.answers) if options.answers else ()
    made = ("--base", options.base, "--name", options.to.rpartition("/")[2])
    run("card", adapter, "--out", out / "release", *made, *recorded, *answers)
    run("release", out / "release", "--to", options.to, "--dry-run")


def run(*arguments: object) -> None:
    """Print a command and run it."""
    words = [str(argument) for argument in arguments]
    print(f"$ gemwright {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "gemwright", *words], check=True)


if __name__ == "__main__":
    main()
