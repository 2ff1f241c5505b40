"""Text from the engine's steps: the end of each sequence, and completions that never change."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemwright.generate.output import Detokenizer, OutputBatch, Stream
from gemwright.generate.step import Step
from gemwright.text.stop import StopStrings
from gemwright.text.tokenizer import Tokenizer
from tests.tiny.vocabulary import make_vocabulary


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(make_vocabulary())


def _steps(*texts: list[int]) -> Iterator[Step]:
    """Yield the tokens of sequences with their ids as log-probabilities; -1 after the end of each."""
    for at in range(max(map(len, texts))):
        tokens = np.array([text[at] if at < len(text) else -1 for text in texts], np.int32)
        none = np.zeros_like(tokens)
        yield Step(tokens, -tokens.astype(np.float32), tokens[:, None], -tokens[:, None].astype(np.float32), none, none)


def test_a_sequence_without_a_token_has_ended(tokenizer: Tokenizer):
    ids = tokenizer.encode("the cat and then")
    batch = OutputBatch(_steps(ids, ids[:2], [*ids[:1], 7]), tokenizer, [1, 2, 3], [7], [], [4, 5, 6])
    pieces = list(batch)
    done = batch.completions
    assert [completion.tokens for completion in done] == [ids, ids[:2], ids[:1]]
    assert [completion.finish_reason for completion in done] == ["length", "length", "stop"]
    assert [completion.text for completion in done] == [tokenizer.decode(completion.tokens) for completion in done]
    assert ["".join(part) for part in zip(*pieces, strict=True)] == [completion.text for completion in done]
    assert [len(completion.logprobs) for completion in done] == [len(ids), 2, 1]


def test_a_completion_never_changes(tokenizer: Tokenizer):
    ids = tokenizer.encode("the cat and then")
    stream = Stream(OutputBatch(_steps(ids), tokenizer, [1], [], [], [0]))
    pieces = iter(stream)
    next(pieces)
    early = stream.completion
    before = (early.text, list(early.tokens), list(early.logprobs), list(map(dict, early.top_logprobs)))
    early.top_logprobs[0].clear()
    list(pieces)
    assert (early.text, early.tokens, early.logprobs) == before[:3]
    whole = stream.completion
    assert whole.tokens == ids
    assert whole.top_logprobs[: len(before[3])] == before[3]


@given(st.text("aethn ", max_size=30), st.text("aethn ", min_size=1, max_size=3))
def test_tokens_end_with_the_text_before_a_stop_string(tokenizer: Tokenizer, whole: str, stop: str):
    ids = tokenizer.encode(whole)
    detokenizer = Detokenizer[int](tokenizer.stream(), StopStrings([stop]), {1})
    released = []
    for index, token in enumerate(ids):
        detokenizer.push(token, index)
        released.append(detokenizer.release())
    detokenizer.finish("length")
    released.append(detokenizer.release())
    text, tokens = "".join(text for text, _ in released), [token for _, tokens in released for token in tokens]
    assert text == whole.partition(stop)[0]
    assert (detokenizer.finish_reason, detokenizer.stop) == (("stop", stop) if stop in whole else ("length", None))
    count = next(count for count in range(len(ids) + 1) if len(tokenizer.decode(ids[:count])) >= len(text))
    assert tokens == [(token, index) for index, token in enumerate(ids[:count])]
