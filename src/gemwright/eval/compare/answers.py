"""The answers of the candidates: generated in batches or asked for over an API, kept, and never made twice."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from gemwright.errors import GemwrightError
from gemwright.eval.compare.candidates import Candidate
from gemwright.eval.compare.prompts import Prompt
from gemwright.eval.endpoint import Client, Endpoint, Reply, run_all
from gemwright.eval.store import Records, make_key
from gemwright.options import SEEDS, Options

if TYPE_CHECKING:
    from gemwright.api import Model

BATCH = 16
"""Number of prompts that a model of this package answers together."""
Load: TypeAlias = "Callable[[str, str | None], Model]"
"""Loads a model by its name and data type."""
Progress = Callable[[str, int, int], None]
"""Called with what is made, how many are done, and how many there are."""


class Answer(NamedTuple):
    """The answers of a candidate to the turns of a prompt.

    Attributes:
        turns: The answer to each turn, without white space around it.
        cut: Whether one of them was cut at the maximum number of tokens.
    """

    turns: tuple[str, ...]
    cut: bool


Answers = Mapping[tuple[str, str], Answer]
"""Answers by the name of the prompt and the label of the candidate."""


def collect_answers(
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    max_tokens: int,
    records: Records,
    load: Load,
    progress: Progress,
) -> Answers:
    """Return the answer of each candidate to each prompt, and make those that `records` does not have.

    A model with a chat template answers in conversation; any other continues the text. Each prompt has its own seed, so
    answers do not depend on what else is asked.

    Raises:
        GemwrightError: A model cannot be loaded, a prompt does not fit, or an endpoint fails; what was made is kept.
    """
    keys = {
        (prompt.name, candidate.label): make_key("answer", candidate.identity, prompt.turns, max_tokens)
        for candidate in candidates
        for prompt in prompts
    }
    for candidates_of_model in _group(candidates):
        model: Model | None = None
        for candidate in candidates_of_model:
            missing = [prompt for prompt in prompts if keys[prompt.name, candidate.label] not in records.by_key]
            keep = _Keeper(candidate, keys, records, len(prompts) - len(missing), len(prompts), progress)
            if not missing:
                continue
            if isinstance(candidate.model, Endpoint):
                _ask(candidate, candidate.model, missing, max_tokens, keep)
                continue
            model = model or load(candidate.model, candidate.dtype)
            _generate(model, candidate, missing, max_tokens, keep)
    turns = {prompt.name: len(prompt.turns) for prompt in prompts}
    return {pair: _read(records.by_key[key], turns[pair[0]]) for pair, key in keys.items()}


def _group(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Yield candidates with the same weights together, so that those are loaded once."""

    def weights(candidate: Candidate) -> tuple[str, str]:
        return str(candidate.model), str(candidate.dtype)

    for _, group in groupby(sorted(candidates, key=weights), weights):
        yield list(group)


def _read(record: Mapping[str, Any], count: int) -> Answer:
    turns = record.get("turns")
    if not isinstance(turns, list) or [type(turn) for turn in cast(list[Any], turns)] != [str] * count:
        raise GemwrightError(f"The answer with the key {record['key']} was changed; remove its line in answers.jsonl.")
    return Answer(tuple(cast(list[str], turns)), bool(record.get("cut")))


class _Keeper:
    """Writes the answers of a candidate as they come, and reports how many there are."""

    def __init__(
        self,
        candidate: Candidate,
        keys: Mapping[tuple[str, str], str],
        records: Records,
        done: int,
        total: int,
        progress: Progress,
    ):
        self._label, self._keys, self._records, self._progress = candidate.label, keys, records, progress
        self._done, self._total = done, total

    def __call__(self, answered: Sequence[tuple[Prompt, Sequence[Reply]]]) -> None:
        self._records.append(
            *(
                {
                    "key": self._keys[prompt.name, self._label],
                    "prompt": prompt.name,
                    "candidate": self._label,
                    "turns": [reply.text for reply in replies],
                    "cut": any(reply.cut for reply in replies),
                }
                for prompt, replies in answered
            )
        )
        self._done += len(answered)
        self._progress(f"Answers of {self._label}", self._done, self._total)


def _generate(model: "Model", candidate: Candidate, prompts: Sequence[Prompt], max_tokens: int, keep: _Keeper) -> None:
    """Generate the answers of a model of this package, batch by batch."""
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        replies: dict[str, list[Reply]] = {prompt.name: [] for prompt in batch}
        for turn in range(max(len(prompt.turns) for prompt in batch)):
            asked = [prompt for prompt in batch if turn < len(prompt.turns)]
            talks = [make_messages(prompt.turns[: turn + 1], replies[prompt.name]) for prompt in asked]
            options = {**candidate.sampling, "seed": [_seed(candidate, prompt) for prompt in asked]}
            for prompt, reply in zip(asked, _complete(model, talks, max_tokens, options), strict=True):
                replies[prompt.name].append(reply)
        keep([(prompt, replies[prompt.name]) for prompt in batch])


def _seed(candidate: Candidate, prompt: Prompt) -> int:
    """Return a seed of a prompt, the same for every candidate that names none."""
    return (int(make_key(prompt.turns)[:8], 16) + int(candidate.sampling.get("seed", 0))) % SEEDS


def _complete(
    model: "Model", talks: Sequence[Sequence[Mapping[str, str]]], max_tokens: int, options: Mapping[str, Any]
) -> list[Reply]:
    """Return the reply to each conversation; a model without a chat template continues its text."""
    settings = cast(Options, {**options, "max_tokens": max_tokens})
    if model.tuned:
        found = model.chat(talks, **settings)
    else:
        found = model.generate(["\n\n".join(message["content"] for message in talk) for talk in talks], **settings)
    return [Reply(one.text.strip(), one.finish_reason == "length") for one in found]


def make_messages(turns: Sequence[str], replies: Sequence[Reply]) -> list[dict[str, str]]:
    """Return a conversation that ends with the last turn of the user."""
    messages = [{"role": "user", "content": turns[0]}]
    for turn, reply in zip(turns[1:], replies, strict=True):
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": turn}]
    return messages


def _ask(candidate: Candidate, endpoint: Endpoint, prompts: Sequence[Prompt], max_tokens: int, keep: _Keeper) -> None:
    """Ask an endpoint for its answers, several at a time."""

    async def answer(client: Client, prompt: Prompt) -> tuple[Prompt, list[Reply]]:
        replies: list[Reply] = []
        for turn in range(len(prompt.turns)):
            messages = make_messages(prompt.turns[: turn + 1], replies)
            replies.append(await client.chat(messages, max_tokens, **candidate.sampling))
        return prompt, replies

    jobs = [partial(answer, prompt=prompt) for prompt in prompts]
    run_all(endpoint, jobs, lambda answered: keep([answered]))
