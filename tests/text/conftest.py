import io
import random
from typing import Any

import pytest

from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def demo_vocabulary(demo_metadata: dict[str, Any]) -> Vocabulary:
    return Vocabulary.from_gguf(demo_metadata)


@pytest.fixture(scope="session")
def demo_tokenizer(demo_vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(demo_vocabulary)


@pytest.fixture(scope="session")
def small_model() -> bytes:
    """Return a `.model` file that sentencepiece trains with Gemma's flags: Gemma 1 up to id 472, few learned pieces."""
    import sentencepiece

    tags = ["table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"]
    headings = ["h1", "h2", "h3", "h4", "h5", "h6", "blockquote"]
    inline = ["strong", "em", "b", "i", "u", "s", "sub", "sup", "code"]
    symbols = [
        *("<mask>", "<2mass>", "[@BOS@]"),
        *(f"<unused{n}>" for n in range(99)),
        *("<start_of_turn>", "<end_of_turn>"),
        *("\n" * n for n in range(1, 32)),
        *("\u2581" * n for n in range(2, 32)),
        *(f"<{slash}{tag}>" for group in (tags, headings, inline) for slash in ("", "/") for tag in group),
    ]
    random_text = random.Random(0)
    words = ["the", "user", "model", "asked", "a", "question", "about", "tea", "them", "answer", "told", "in", "1984"]
    sentences = [" ".join(random_text.choices(words, k=20)) for _ in range(300)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type="bpe",
        vocab_size=len(symbols) + 4 + 256 + 80,
        user_defined_symbols=symbols,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture(scope="session")
def small_vocabulary(small_model: bytes) -> Vocabulary:
    return Vocabulary.from_sentencepiece(small_model)


@pytest.fixture(scope="session")
def small_tokenizer(small_vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(small_vocabulary)


@pytest.fixture(scope="session")
def torture_texts() -> list[str]:
    """Return texts of edge cases, without markers and without U+2581."""
    texts = [
        "",
        " ",
        "Hello, world!",
        " a  b   c    ",
        "👩‍👩‍👧‍👦 family 🏳️‍🌈 🇺🇳 👍🏽",
        "שלום עולם مرحبا بالعالم\u200f ‮abc‬",
        "漢字かな交じり文。한국어 텍스트 ไทย हिन्दी",
        "0123456789 3.14159 1,000,000 ١٢٣ Ⅷ ½",
        "\ta\t\tb\t \tc",
        "a\r\nb\r\n\r\nc\rd",
        "<table><tr><td>x</td></tr></table> <b>bold</b><h1>T</h1> <i> </code>",
        '<span class="x"> <table > < b> <notatag> </',
        "𓀀𒀱🜁 \U0010ffff\ue000",
        "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n",
        "e\u0301 a\u0308\u0323 Z̸̢̛a̷l̵g̶o̸",
        "".join(map(chr, range(32))) + "\x7f\x80\x9f\ufeff\ufffd",
        "naïve café ﬁ Å A\u030a",
        "mixed \n \t \n\n  <b>\n</b> x",
        "\u2028\u2029\u00a0\u3000\u200b\u2009",
        "---===~~~...!!!??? don't I'll we've",
        "http://example.com/a?b=c&d=%20e#f",
        "x" * 300 + "ab" * 200,
    ]
    texts += ["\n" * n for n in range(1, 71)]
    texts += ["\t" * n + "x" for n in range(1, 71)]
    texts += ["a" + " " * n + "b" for n in range(1, 71)]
    draw = random.Random(1)
    bits = ["a", "the ", " ", "  ", "\n", "\t", "1", "é", "漢", "👍", "\u200d", "<", "b", ">", "</", "<table>", "\0"]
    for _ in range(300):
        texts.append(
            "".join(draw.choice([*bits, chr(draw.randrange(0x20, 0x2500))]) for _ in range(draw.randrange(60)))
        )
    return texts
