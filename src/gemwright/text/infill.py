"""Fill-in-the-middle prompts of CodeGemma: from the code before and after a gap, generate the code between.

Source: CodeGemma's model card and report (arXiv:2406.11409), prefix-suffix-middle order.
"""

from gemwright.families import FILL_IN_THE_MIDDLE as TOKENS
from gemwright.text.tokenizer import Tokenizer


def render(tokenizer: Tokenizer, before: str, after: str) -> list[int]:
    """Return the ids of a prompt that the model continues with the code between `before` and `after`.

    Args:
        tokenizer: A tokenizer whose vocabulary has CodeGemma's fill-in-the-middle tokens.
        before: The code before the gap, unchanged; may be empty.
        after: The code after the gap, unchanged; may be empty.

    Raises:
        GemwrightError: The vocabulary has no fill-in-the-middle tokens.
    """
    return [
        tokenizer.bos_id,
        tokenizer.id_of(TOKENS.prefix),
        *tokenizer.encode(before),
        tokenizer.id_of(TOKENS.suffix),
        *tokenizer.encode(after),
        tokenizer.id_of(TOKENS.middle),
    ]


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end the middle: any fill-in-the-middle token, or EOS."""
    tokens = (TOKENS.prefix, TOKENS.middle, TOKENS.suffix, TOKENS.separator)
    return (*map(tokenizer.id_of, tokens), tokenizer.eos_id)
