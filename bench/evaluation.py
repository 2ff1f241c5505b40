"""Compare the speed and the results of evaluation with lm-eval's own model of transformers, in one run.

Both run the same requests of the same tasks on the weights of Gemma 3 270M: transformers in float32 and bfloat16,
gemwright as stored (for speed) and in float32 (for equal results). Prints a table in Markdown.

    python bench/evaluation.py --data FOLDER [--items 50]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import models

TASKS = {"openbookqa": 0, "piqa": 0, "mmlu_astronomy": 5, "hellaswag": 10}
"""Tasks of lm-eval and their number of examples; those without files are left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--items", type=int, default=50, help="number of items of each task")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--models", nargs="*", help="only these rows")
    arguments = parser.parse_args()
    from gemwright.eval import quiet

    quiet.silence(offline=True)
    import lm_eval.models  # noqa: F401  # registers the model of transformers
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    from gemwright.eval.benchmarks import FINDERS
    from gemwright.eval.benchmarks import TASKS as TASKS_OF_FILES
    from gemwright.eval.harness import HarnessModel
    from gemwright.eval.local import find_tasks, write_tasks

    path = str(models.make_demo_folder())
    transformers = get_model("hf")
    makers = {
        "transformers, float32": lambda: transformers(
            pretrained=path, dtype="float32", add_bos_token=True, device="cpu", batch_size=8
        ),
        "transformers, bfloat16": lambda: transformers(
            pretrained=path, dtype="bfloat16", add_bos_token=True, device="cpu", batch_size=8
        ),
        "gemwright, float32": lambda: HarnessModel(path, dtype="float32"),
        "gemwright, as stored": lambda: HarnessModel(str(models.locate_demo())),
    }
    with tempfile.TemporaryDirectory() as folder:
        names = write_tasks(find_tasks(arguments.data, TASKS_OF_FILES, FINDERS), Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        tasks = [task for task in arguments.tasks if task in names]
        found = {
            name: {task: measure(model, task, manager, arguments.items) for task in tasks}
            for name, make in makers.items()
            if not arguments.models or name in arguments.models
            for model in [make()]
        }
    show(found, tasks)


def measure(model, task: str, manager, items: int) -> tuple[float, list]:
    """Return the requests per second of a task, and the responses; a model that compiles is timed the second time."""
    responses, seconds = [], 0.0
    compiles = not hasattr(model, "batch_size_per_gpu")
    if not compiles:  # whole logits of long prompts: 1 GB for each
        model.batch_size_per_gpu = 2 if TASKS.get(task, 0) >= 10 else 8
    for turn in range(2 if compiles else 1):
        loaded = manager.load([task])["tasks"][task]
        loaded.set_config(key="num_fewshot", value=TASKS.get(task, 0))
        loaded.set_fewshot_seed(seed=1234)
        loaded.build_all_requests(limit=items, rank=0, world_size=1)
        start = time.perf_counter()
        responses = model.loglikelihood(loaded.instances, disable_tqdm=True)
        seconds = time.perf_counter() - start
        print(
            f"{type(model).__name__}, {task}, turn {turn + 1}: {len(responses) / seconds:.2f} requests/s",
            file=sys.stderr,
        )
    return len(responses) / seconds, responses


def show(found, tasks: list[str]) -> None:
    faster = {task: max(found[name][task][0] for name in found if "transformers" in name) for task in tasks}
    truth = found["transformers, float32"]
    print("| task | model | requests/s | times the faster transformers | likeliest choice differs |")
    print("| --- | --- | --- | --- | --- |")
    for task in tasks:
        choices = {"mmlu_astronomy": 4, "hellaswag": 4, "openbookqa": 4}.get(task, 2)
        for name, results in found.items():
            rate, responses = results[task]
            best = [best_choices(answers, choices) for answers in (responses, truth[task][1])]
            differ = sum(one != other for one, other in zip(*best, strict=True))
            print(f"| {task} | {name} | {rate:.2f} | {rate / faster[task]:.2f} | {differ} of {len(best[0])} |")


def best_choices(responses: list, choices: int) -> list[int]:
    values = [response[0] for response in responses]
    rows = [values[start : start + choices] for start in range(0, len(values), choices)]
    return [row.index(max(row)) for row in rows]


if __name__ == "__main__":
    main()
