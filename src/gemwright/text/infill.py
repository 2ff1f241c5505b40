"""Fill-in-the-middle prompts of CodeGemma: code before and after a gap in, the code between out.

Source: CodeGemma's model card and report (arXiv:2406.11409), prefix-suffix-middle order.
"""

from gemwright.text.tokenizer import Tokenizer

PREFIX, SUFFIX, MIDDLE, SEPARATOR = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>"


def render(tokenizer: Tokenizer, before: str, after: str) -> list[int]:
    """Ids of a prompt after which the model writes what stands between `before` and `after`.

    Args:
        tokenizer: one whose vocabulary has CodeGemma's markers.
        before: the code before the gap, taken as it stands; may be empty.
        after: the code after the gap, taken as it stands; may be empty.

    Raises:
        GemwrightError: the vocabulary has no fill-in-the-middle markers.
    """
    return [
        tokenizer.bos_id,
        tokenizer.id_of(PREFIX),
        *tokenizer.encode(before),
        tokenizer.id_of(SUFFIX),
        *tokenizer.encode(after),
        tokenizer.id_of(MIDDLE),
    ]


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end the middle: it is complete at the first marker of any kind, or at EOS."""
    return (*(tokenizer.id_of(marker) for marker in (PREFIX, MIDDLE, SUFFIX, SEPARATOR)), tokenizer.eos_id)
