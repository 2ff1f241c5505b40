"""Tune the base 270M to hold a conversation, and measure it before and after.

python recipes/chat.py dolly.csv oasst.jsonl self-instruct.jsonl --out chat
gemwright chat --model chat/run/adapter

The data are any files of conversations or of instructions with answers. Short ones are used: so small a model learns to
answer and to stop, and no knowledge. The training takes less than half an hour with two cores.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import measure
import numpy as np

import gemwright
from gemwright.data.records import Chat, find_kind, read_examples
from gemwright.data.sources import find_files, read_records
from gemwright.generate.output import Completion
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train

RECIPE = Recipe(learning_rate=1e-3, length=512, batch_size=2)
MINUTES = 20.0
HELD_OUT = 100
SHOWN = 10
SEED = 0
MAX_PROMPT, MAX_REPLY = 500, 300
"""Maximum number of characters of a message and of a reply to learn: many short replies teach their end."""

Conversation = list[dict[str, Any]]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Tune a base model on conversations.")
    parser.add_argument("data", type=Path, nargs="+", help="files or folders of conversations or instructions")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="gemma-3-270m", help="path, name or hub id")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of the training on two cores")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="number of prompts to measure on")
    options = parser.parse_args()
    steps = measure.steps_of(options.minutes, RECIPE.batch_size * RECIPE.length)
    run(options.model, options.data, options.out, steps, options.held_out)


def run(model: str, data: list[Path], out: Path, steps: int, held_out: int = HELD_OUT) -> dict[str, Any]:
    """Tune a model for a number of steps, and return the measures before and after."""
    training, test = split(data, out / "data", held_out)
    talks = [json.loads(line)["messages"] for line in test.read_text(encoding="utf-8").splitlines()]
    print(f"Measuring {model} on {len(talks)} prompts ...", flush=True)
    before, _ = measure_replies(gemwright.load(model), test, talks)
    recipe = Recipe(**RECIPE.document() | {"steps": steps})
    adapter = train(prepare(model, training, out / "run", recipe, held_out=0.0), measure.report)
    print(f"Measuring {adapter} ...", flush=True)
    after, answers = measure_replies(gemwright.load(adapter), test, talks)
    shown = [show(talk, reply) for talk, reply in zip(talks[:SHOWN], answers, strict=False)]
    for record in shown:
        print(f"\n> {record['prompt']}\n{record['reply']}  [{record['ends']}]")
    measure.write_results(adapter.parent / "results.json", before, after, steps=steps, replies=shown)
    return {"before": before, "after": after}


def split(data: list[Path], folder: Path, held_out: int) -> tuple[Path, Path]:
    """Write the short conversations in two files, of which the second has random ones of a prompt and a reply."""
    talks = list({json.dumps(talk): talk for talk in read(data)}.values())
    talks = [talks[index] for index in np.random.default_rng(SEED).permutation(len(talks))]
    test = [talk for talk in talks if len(talk) == 2][:held_out]
    prompts = {talk[0]["content"] for talk in test}
    training = [talk for talk in talks if talk[0]["content"] not in prompts]
    files = {"train.jsonl": training, "test.jsonl": test}
    first, second = (
        measure.write_records(folder / name, [{"messages": talk} for talk in part]) for name, part in files.items()
    )
    return first, second


def read(data: list[Path]) -> Iterator[Conversation]:
    """Yield the conversations of the files, each up to the first message that is too long."""
    for record in read_records(find_files(data)):
        for example in read_examples(find_kind(record), record, chat=True):
            if isinstance(example, Chat) and (talk := shorten(example)):
                yield talk


def shorten(chat: Chat) -> Conversation:
    """Return the messages of a conversation before the first that is too long, up to a reply of the model."""
    talk: Conversation = []
    for message, learned in zip(chat.messages, chat.learned, strict=True):
        role, text = message["role"], str(message["content"])
        if not 0 < len(text) <= (MAX_REPLY if role == "assistant" else MAX_PROMPT):
            break
        talk.append({"role": role, "content": text} | ({"weight": 0} if role == "assistant" and not learned else {}))
    return talk[: len(talk) - (len(talk) > 0 and talk[-1]["role"] != "assistant")]


def measure_replies(
    model: gemwright.Model, file: Path, talks: list[Conversation]
) -> tuple[dict[str, float], list[Completion]]:
    """Return the loss of the answers and shares of the replies, which are drawn as `gemwright chat` draws them."""
    answers = measure.replies(model, [talk[:1] for talk in talks], seed=SEED)
    measures = {
        "loss of the answers (nats per token)": measure.answer_loss(model, file),
        "replies that end by themselves": float(np.mean([reply.finish_reason == "stop" for reply in answers])),
        "replies that repeat themselves to the limit": float(np.mean([measure.is_repeating(one) for one in answers])),
        "replies that are empty": float(np.mean([not reply.text.strip() for reply in answers])),
    }
    return measures, answers


def show(talk: Conversation, reply: Completion) -> Mapping[str, str]:
    """Return a prompt and its reply."""
    ends = "ends by itself" if reply.finish_reason == "stop" else f"cut after {measure.MAX_TOKENS} tokens"
    return {"prompt": talk[0]["content"], "reply": reply.text.strip(), "ends": ends}


if __name__ == "__main__":
    main()
