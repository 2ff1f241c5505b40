"""lm-eval with a model of this package and with transformers: equal results for each request."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny.hf import write_model

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore")]
WORDS = ["the cat", "and the thing", "in the other", "then. Nothing", "over there"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "gemma3", "gemma3_text")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of choices and a task of replies, both with examples."""
    place = tmp_path_factory.mktemp("tasks")
    records = [
        {"question": WORDS[index % 5], "choices": [WORDS[(index + k) % 5] for k in range(1, 4)], "answer": index % 3}
        for index in range(12)
    ]
    (place / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "data.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}",
    }
    choices = {
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    }
    replies = {
        "task": "replies",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    for fields in (choices, replies):
        (place / f"{fields['task']}.yaml").write_text(json.dumps(common | fields))
    return place


def evaluate(model: str, arguments: dict[str, Any], task: Path, shots: int) -> dict[str, list[Any]]:
    """Return the response to each request of each task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["choices", "replies"],
        num_fewshot=shots,
        task_manager=TaskManager(include_path=str(task), include_defaults=False),
        bootstrap_iters=0,
        device="cpu",
    )
    assert results is not None
    return {name: [sample["resps"] for sample in samples] for name, samples in results["samples"].items()}


@pytest.mark.parametrize("shots", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_responses_equal_those_of_transformers(folder: Path, task: Path, shots: int):
    import lm_eval.models  # noqa: F401  # registers transformers' models

    import gemwright.eval.harness  # pyright: ignore[reportUnusedImport]  # noqa: F401

    ours = evaluate("gemwright", {"pretrained": str(folder), "dtype": "float32"}, task, shots)
    theirs = evaluate("hf", {"pretrained": str(folder), "dtype": "float32", "add_bos_token": True}, task, shots)
    assert ours["replies"] == theirs["replies"]
    for one, other in zip(ours["choices"], theirs["choices"], strict=True):
        for (mine,), (expected,) in zip(one, other, strict=True):
            np.testing.assert_allclose(float(mine[0]), float(expected[0]), rtol=1e-4)
            assert str(mine[1]) == str(expected[1])
