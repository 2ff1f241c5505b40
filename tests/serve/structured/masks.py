"""Texts drawn at random from the masks of a grammar."""

from collections.abc import Sequence

import numpy as np

from gemwright.serve.structured.grammar import Matcher, compile_grammar
from gemwright.text.tokenizer import Tokenizer

CLOSING = frozenset({b'"', b"}", b"]", b",", b":", b"<escape>", b'<|"|>'})


def allowed(matcher: Matcher, vocabulary: int) -> list[int]:
    """Return the tokens of a mask of a model's vocabulary."""
    row = np.full(-(-vocabulary // 32), -1, np.int32)
    matcher.fill_mask(row)
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()


def draw(grammar: str, tokenizer: Tokenizer, stop_ids: Sequence[int], seed: int, most: int = 600) -> str | None:
    """Return a text of the grammar, or None if it grows beyond `most` tokens; half of the tokens close something."""
    numbers, matcher, text = np.random.default_rng(seed), compile_grammar(grammar, tokenizer, stop_ids), list[int]()
    for _ in range(most):
        tokens = allowed(matcher, tokenizer.size)
        assert bool(set(tokens) & set(stop_ids)) == matcher.is_accepting
        if matcher.is_accepting and (matcher.is_stopped or numbers.random() < 0.5):
            return tokenizer.decode(text, keep_control=True)
        tokens = [token for token in tokens if token not in stop_ids]
        assert tokens, (matcher.error, tokenizer.decode(text))
        closing = [token for token in tokens if tokenizer.piece_bytes(token, keep_control=True) in CLOSING]
        choice = int(numbers.choice(closing if closing and numbers.random() < 0.5 else tokens))
        assert matcher.accept(choice)
        text.append(choice)
    return None
