"""A whole tiny model from a file: text in, text out."""

import functools
import math
import os
import subprocess
import sys
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import gemwright
import gemwright.options
from gemwright import memory
from gemwright.checkpoint.open import open_checkpoint
from gemwright.generate.sampling import Sampling
from gemwright.loading.model import _draft, choose_precision, default_sampling
from gemwright.model import params
from gemwright.model.config import Config
from gemwright.model.transformer import forward, logits
from gemwright.text.tokenizer import Tokenizer
from gemwright.variants import VARIANTS
from tests.tiny.gguf import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONTEXT = 128
PROMPTS = ["the cat", "and then. Nothing"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gemwright.Model:
    return gemwright.load(write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture(scope="module")
def short(model: gemwright.Model) -> gemwright.Model:
    """The same model with a context of `CONTEXT` tokens."""
    return replace(model, engine=replace(model.engine, config=replace(model.engine.config, max_length=CONTEXT)))


def test_generate_continues_a_text(model: gemwright.Model):
    completion = model.generate(PROMPTS[0], max_tokens=20, temperature=0.0, top_logprobs=0)
    assert len(completion.tokens) == len(completion.logprobs) == 20
    assert completion.finish_reason == "length"
    assert completion.prompt_tokens == len(model.encode(PROMPTS[0]))
    assert completion.text == model.tokenizer.decode(completion.tokens)
    assert all(logprob <= 0 for logprob in completion.logprobs)


def test_the_logprobs_are_those_of_the_text(model: gemwright.Model):
    """With keys and values in float32: a rounded one may fall to either side in one pass and in several."""
    model = replace(model, engine=replace(model.engine, state_dtype=jnp.float32))
    completion = model.generate(PROMPTS[0], max_tokens=10, temperature=1.5, top_k=9, seed=4, top_logprobs=0)
    whole = model.engine.score([model.encode(PROMPTS[0]) + completion.tokens])[0]
    np.testing.assert_allclose(completion.logprobs, whole[-10:], rtol=0, atol=1e-5)


def test_several_texts_equal_each_alone(model: gemwright.Model):
    together = model.generate(PROMPTS, max_tokens=12, temperature=1.0, seed=[3, 9])
    alone = [
        model.generate(text, max_tokens=12, temperature=1.0, seed=seed)
        for text, seed in zip(PROMPTS, (3, 9), strict=True)
    ]
    assert [completion.tokens for completion in together] == [completion.tokens for completion in alone]
    assert model.generate([], max_tokens=3) == []


def test_a_stream_is_the_text_in_pieces(model: gemwright.Model):
    options: Any = {"max_tokens": 15, "temperature": 1.0, "seed": 2}
    stream = model.stream(PROMPTS[1], **options)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.completion.text == model.generate(PROMPTS[1], **options).text


def test_chat_and_its_stream(model: gemwright.Model):
    messages = [gemwright.Message("system", "be kind"), {"role": "user", "content": "the cat"}]
    answer = model.chat(messages, max_tokens=8, temperature=0.0)
    assert "".join(model.stream(messages, max_tokens=8, temperature=0.0)) == answer.text
    ids = model.encode_chat(messages)
    assert answer.prompt_tokens == len(ids)
    assert ids.count(model.tokenizer.bos_id) == 1
    assert ids.count(model.tokenizer.id_of("<start_of_turn>")) == 2
    assert model.tokenizer.id_of("<end_of_turn>") in model.chat_stop_ids


def test_infill_is_greedy(model: gemwright.Model):
    first = model.infill("the ", " cat", max_tokens=8)
    assert first == model.infill("the ", " cat", max_tokens=8, seed=5)
    assert first.prompt_tokens == len(model.tokenizer.encode("the ")) + len(model.tokenizer.encode(" cat")) + 4


def test_score_is_the_log_softmax_of_one_pass(model: gemwright.Model):
    model = replace(model, engine=replace(model.engine, state_dtype=jnp.float32))  # as one pass has it
    score = model.score("the cat and the other")
    ids = jnp.asarray([score.tokens])
    hidden, _ = forward(model.engine.config, model.engine.params, ids)
    table = jax.nn.log_softmax(logits(model.engine.config, model.engine.params, hidden)[0, :-1])
    expected = np.asarray(table)[range(len(score.tokens) - 1), score.tokens[1:]]
    np.testing.assert_allclose(score.logprobs, expected, rtol=0, atol=1e-5)
    assert score.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-4)
    assert score.tokens[0] == model.tokenizer.bos_id


def test_several_texts_are_scored_as_each_alone(model: gemwright.Model):
    texts, prompts = ["the cat", [5, 6, 7], "and"], ["hen", [2, 9], ""]
    together = model.score(texts, prompts)
    for score, text, prompt in zip(together, texts, prompts, strict=True):
        alone = model.score(text, prompt)
        assert score.tokens == alone.tokens
        np.testing.assert_allclose(score.logprobs, alone.logprobs, rtol=0, atol=1e-5)
    assert [len(score.logprobs) for score in together] == [len(model.encode("the cat")) - 1, 3, 1]
    assert model.score([]) == []


@pytest.mark.parametrize("text", ["", [[]], [7], [""]], ids=str)
def test_nothing_to_score_is_refused(model: gemwright.Model, text: Any):
    with pytest.raises(gemwright.GemwrightError, match="There is no token to score"):
        model.score(text)


@pytest.mark.parametrize(("max_length", "stride"), [(16, 5), (9, 8), (9, 1), (64, 7)])
def test_windows_are_those_of_the_perplexity_guide(model: gemwright.Model, max_length: int, stride: int):
    """The loop of huggingface.co/docs/transformers/perplexity over full passes, with BOS before each window."""
    model = replace(model, engine=replace(model.engine, state_dtype=jnp.float32))
    bos, *ids = model.encode("the cat and then the hen. Nothing")
    expected, previous, size = list[float](), 0, max_length - 1
    for begin in range(0, len(ids), stride):
        end = min(begin + size, len(ids))
        window = [bos, *ids[begin:end]]
        expected += _logprobs(model, window)[-(end - previous) :]
        previous = end
        if end == len(ids):
            break
    with pytest.raises(gemwright.GemwrightError, match=f"stride is {max_length}, and it must be at most {size}"):
        model.score(ids, [bos], max_length=max_length, stride=max_length)
    text = model.decode(ids)
    found = model.score([text, text], max_length=max_length, stride=stride)
    for score in (*found, model.score(text, max_length=max_length, stride=stride)):
        assert score.tokens == [bos, *ids]
        np.testing.assert_allclose(score.logprobs, expected, rtol=0, atol=1e-5)


def test_windows_of_ids_have_no_bos(model: gemwright.Model):
    model = replace(model, engine=replace(model.engine, state_dtype=jnp.float32))
    ids = model.encode("the cat and then the hen")
    expected = [
        *_logprobs(model, ids[:8]),
        *_logprobs(model, ids[4:12])[-4:],
        *_logprobs(model, ids[8:])[-(len(ids) - 12) :],
    ]
    assert 12 < len(ids) <= 16
    np.testing.assert_allclose(model.score(ids, max_length=8).logprobs, expected, rtol=0, atol=1e-5)


def test_a_text_of_any_length_has_a_perplexity(short: gemwright.Model):
    text = "the cat and then " * 60
    score = short.score(text, stride=32)
    assert len(score.logprobs) == len(short.tokenizer.encode(text)) > CONTEXT
    assert math.isfinite(score.perplexity)
    with pytest.raises(gemwright.GemwrightError, match="max_length must be from 2 to 128"):
        short.score(text, max_length=129)


def _logprobs(model: gemwright.Model, ids: list[int]) -> list[float]:
    """The log-softmax of one pass, over ids padded on the right to a length that all texts here share."""
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(ids)] = ids
    table = _log_softmax(model.engine.config, model.engine.params, tokens)
    return np.asarray(table)[range(len(ids) - 1), ids[1:]].tolist()


@functools.partial(jax.jit, static_argnums=0)
def _log_softmax(config: Config, weights: params.ModelWeights, tokens: jax.Array) -> jax.Array:
    hidden, _ = forward(config, weights, tokens)
    return jax.nn.log_softmax(logits(config, weights, hidden)[0])


def test_ids_are_prompts_as_they_are(model: gemwright.Model):
    options: Any = {"max_tokens": 6, "temperature": 0.0}
    ids = model.encode(PROMPTS[0])
    whole = model.generate(PROMPTS[0], **options)
    for prompt in (ids, tuple(ids), np.array(ids), jnp.asarray(ids)):
        assert model.generate(prompt, **options) == whole
    assert model.generate([ids, PROMPTS[0]], **options) == [whole, whole]
    assert model.generate(np.array([ids, ids]), **options) == [whole, whole]
    assert "".join(model.stream(ids, **options)) == whole.text
    assert model.generate(ids[1:], **options).prompt_tokens == len(ids) - 1
    with pytest.raises(gemwright.GemwrightError, match="Token ids must be between 0 and"):
        model.generate([model.tokenizer.size], **options)


def test_decode_is_the_inverse_of_encode(model: gemwright.Model):
    assert model.decode(model.encode("the cat")) == "the cat"
    assert model.decode(np.array(model.encode("the cat"))) == "the cat"
    assert model.decode([]) == ""
    for wrong in ("the", [["the"]], [[1, 2]], 5, [1.5], [model.tokenizer.size], [-1]):
        with pytest.raises(gemwright.GemwrightError):
            model.decode(wrong)  # type: ignore[arg-type]


def test_several_conversations_are_answered_as_each_alone(model: gemwright.Model):
    talks: Any = [[{"role": "user", "content": text}] for text in PROMPTS]
    together = model.chat(talks, max_tokens=6, temperature=0.0)
    assert together == [model.chat(talk, max_tokens=6, temperature=0.0) for talk in talks]


def test_each_text_has_a_seed_of_its_own(model: gemwright.Model):
    options: Any = {"max_tokens": 12, "temperature": 1.0}
    texts = model.generate(["the"] * 4, **options)
    assert len({text.text for text in texts}) == 4
    assert len({model.generate("the", **options).text for _ in range(3)}) > 1
    for text in texts:
        assert model.generate("the", seed=text.seed, **options).text == text.text
    assert [text.seed for text in model.generate(["the"] * 3, seed=2**32 - 2, **options)] == [2**32 - 2, 2**32 - 1, 0]
    assert [text.seed for text in model.generate(["the"] * 2, seed=np.array([7, 3]), **options)] == [7, 3]
    stream = model.stream("the", **options)
    assert "".join(stream) == model.generate("the", seed=stream.completion.seed, **options).text


def test_none_is_the_default_and_numbers_of_numpy_are_numbers(model: gemwright.Model):
    names = gemwright.options.Options.__annotations__
    assert len(model.generate("the", **dict.fromkeys(names)).tokens) <= 256
    options: Any = {
        "max_tokens": np.int64(3), "seed": np.int64(4), "temperature": np.float32(1.0), "top_k": jnp.asarray(7),
        "logprobs": np.bool_(True), "stop": ("zzz",), "top_p": 1,
    }  # fmt: skip
    plain = {"max_tokens": 3, "seed": 4, "temperature": 1.0, "top_k": 7, "logprobs": True, "top_p": 1.0}
    assert model.generate("the", **options) == model.generate("the", **plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(b"abc"), "bytes; decode it"),
        (lambda model: model.generate(text for text in PROMPTS), "not generator; pass several texts as a list"),
        (lambda model: model.generate([{"role": "user", "content": "the"}]), "pass a list of messages to chat"),
        (lambda model: model.generate(gemwright.Message("user", "the")), "pass a list of messages to chat"),
        (lambda model: model.generate(None), "not NoneType"),
        (lambda model: model.generate(Path("the")), "Path"),
        (lambda model: model.generate([1, "the"]), "not int"),
        (lambda model: model.generate([1.0]), "not float"),
        (lambda model: model.generate([[]]), "A prompt is empty"),
        (lambda model: model.chat("hi"), "A conversation is a list of messages"),
        (lambda model: model.chat(["hi"]), "A conversation is a list of messages"),
        (lambda model: model.chat({"role": "user", "content": "hi"}), "A conversation is a list of messages"),
        (lambda model: model.stream(PROMPTS), "A stream continues one prompt"),
        (lambda model: model.infill("the", None), "must be strings"),
        (lambda model: model.score("the", temperature=0.0), "no option 'temperature'; the options are stride"),
        (lambda model: model.score("the", strides=1), "did you mean stride"),
        (lambda model: model.score(["the", "hen"], ["the"]), "prompt has 1 texts for 2"),
        (lambda model: model.score("the", stride="wide"), "stride must be an integer"),
        (lambda model: model.chat([{"role": "user", "content": "hi"}], max_new_tokens=2), "did you mean max_tokens"),
        (lambda model: model.stream("the", temprature=0), "did you mean temperature"),
        (lambda model: model.infill("the", "cat", do_sample=False), "temperature=0 is greedy"),
        (lambda model: gemwright.load("x.gguf", dtyp="float32"), "no option 'dtyp'; did you mean dtype"),
        (lambda model: gemwright.load("x.gguf", device="cuda"), "JAX_PLATFORMS"),
    ],
)
def test_wrong_calls_have_one_sentence(model: gemwright.Model, call: Any, message: str):
    with pytest.raises(gemwright.GemwrightError, match=message):
        call(model)


def test_a_stream_is_an_iterator(model: gemwright.Model):
    stream = model.stream("the", max_tokens=3, temperature=0.0)
    assert next(stream) + "".join(stream) == stream.completion.text
    assert next(stream, None) is None


def test_objects_show_themselves_in_a_line(model: gemwright.Model):
    assert repr(model) == f"Model({model.name!r}, 44,256 parameters, stored, cpu)"
    bfloat16 = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params.init(model.engine.config, jax.random.key(0)))
    assert repr(replace(model.engine, params=bfloat16)) == "Engine(44,256 parameters, bfloat16, cpu)"
    assert repr(open_checkpoint(Path(model.name))) == f"Checkpoint({model.name!r}, Gemma 3, gguf)"
    assert repr(model.tokenizer) == "Tokenizer(398 tokens)"


def test_logits_that_are_not_finite_name_the_model(model: gemwright.Model):
    norm = model.engine.params.final_norm.at[0].set(np.nan)
    weights = replace(model.engine.params, final_norm=norm)
    damaged = replace(model, name="mine.gguf", engine=replace(model.engine, params=weights))
    for call in (damaged.generate, damaged.score, lambda text: list(damaged.stream(text))):
        with pytest.raises(gemwright.GemwrightError, match=r"mine\.gguf: .*logits are not finite.*float32 or bfloat16"):
            call("the cat")


def test_a_stop_string_ends_the_text(model: gemwright.Model):
    whole = model.generate(PROMPTS[0], max_tokens=30, temperature=0.0)
    stop = whole.text[7:9]
    cut = model.generate(PROMPTS[0], max_tokens=30, temperature=0.0, stop=stop)
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    stream = model.stream(PROMPTS[0], max_tokens=30, temperature=0.0, stop=["never written", stop])
    assert "".join(stream) == cut.text


def test_a_stop_id_ends_one_sequence_and_not_the_other(model: gemwright.Model):
    rows = model.generate(PROMPTS, max_tokens=20, temperature=1.0, seed=[1, 2])
    stop = next(token for token in rows[0].tokens[2:] if token not in rows[1].tokens)
    ended = replace(model, stop_ids=(stop,)).generate(PROMPTS, max_tokens=20, temperature=1.0, seed=[1, 2])
    assert ended[0].finish_reason == "stop"
    assert ended[0].tokens == rows[0].tokens[: rows[0].tokens.index(stop)]
    assert ended[1].tokens == rows[1].tokens


def test_top_logprobs(model: gemwright.Model):
    completion = model.generate(PROMPTS[0], max_tokens=5, temperature=0.0, top_logprobs=4)
    for token, logprob, options in zip(completion.tokens, completion.logprobs, completion.top_logprobs, strict=True):
        assert len(options) == 4
        assert list(options.values()) == sorted(options.values(), reverse=True)
        assert next(iter(options)) == token
        assert options[token] == pytest.approx(logprob, abs=1e-5)
    assert model.generate(PROMPTS[0], max_tokens=2, top_logprobs=0).top_logprobs == [{}, {}]
    assert model.generate(PROMPTS[0], max_tokens=2).logprobs == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculation_changes_the_speed_only(model: gemwright.Model, temperature: float):
    options: Any = {"max_tokens": 40, "temperature": temperature, "seed": 6}
    plain = model.generate(PROMPTS[0], **options)
    assert plain.proposed == plain.accepted == 0
    by_lookup = model.generate(PROMPTS[0], lookup=True, **options)
    stream = replace(model, draft=model.engine).stream(PROMPTS[0], **options)
    assert "".join(stream) == plain.text
    assert by_lookup.tokens == stream.completion.tokens == plain.tokens
    assert 0 < stream.completion.accepted == stream.completion.proposed


def test_a_draft_needs_the_same_vocabulary(tmp_path: Path, model: gemwright.Model):
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert gemwright.load(path, draft=path).draft is not None
    vocabulary = replace(model.tokenizer.vocabulary, pieces=(*model.tokenizer.pieces[:-1], "qq"))
    other = replace(model, tokenizer=Tokenizer(vocabulary))
    with pytest.raises(gemwright.GemwrightError, match="different vocabularies"):
        _draft(model, other)


def test_generation_ends_with_the_context(short: gemwright.Model):
    prompt = "the cat " * 18
    room = CONTEXT - len(short.encode(prompt))
    assert 0 < room < 100
    assert len(short.generate(prompt, max_tokens=500, temperature=0.0).tokens) == room


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 65}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -3}, "top_k"),
        ({"seed": [1, 2]}, "2 seeds for 1 texts"),
        ({"stop": ""}, "stop string is empty"),
        ({"max_token": 3}, "no option 'max_token'; did you mean max_tokens"),
        ({"temprature": 0.0}, "did you mean temperature"),
        ({"zzz": 1}, "no option 'zzz'; the options are max_tokens, "),
        ({"max_new_tokens": 3}, "did you mean max_tokens"),
        ({"do_sample": False}, "no option 'do_sample'; temperature=0 is greedy"),
        ({"n": 4}, "repeat the prompt"),
        ({"max_tokens": "3"}, "max_tokens must be an integer, not '3'"),
        ({"max_tokens": True}, "max_tokens must be an integer, not True"),
        ({"max_tokens": 2.5}, "max_tokens must be an integer"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": [1.0, 2.0]}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"seed": "abc"}, "seed must be an integer or a list of integers"),
        ({"seed": [None]}, "seed must be an integer or a list of integers"),
        ({"seed": -1}, "seed is -1, and it must lie between 0"),
        ({"stop": 3}, "stop must be a string or a list of strings"),
        ({"stop": b"a"}, "stop must be a string or a list of strings"),
        ({"logprobs": 5}, "logprobs must be True or False .top_logprobs is"),
        ({"lookup": "yes"}, "lookup must be True or False"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3.0, and it must lie between -2.0 and 2.0"),
    ],
    ids=str,
)
def test_bad_options_are_refused(model: gemwright.Model, options: Any, message: str):
    with pytest.raises(gemwright.GemwrightError, match=message):
        model.generate("the", **options)


def test_a_prompt_longer_than_the_context_is_refused(short: gemwright.Model):
    with pytest.raises(gemwright.GemwrightError, match=f"context is {CONTEXT}"):
        short.generate("the cat " * 100)
    with pytest.raises(gemwright.GemwrightError, match=f"context is {CONTEXT}"):
        short.score("the cat " * 100)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "robot", "content": "the"}],
        [{"role": "user"}],
        [{"content": "the"}],
        [],
        [{"role": "assistant", "content": "the"}],
        [{"role": "user", "content": "the"}, {"role": "user", "content": "the"}],
    ],
    ids=str,
)
def test_bad_conversations_are_refused(model: gemwright.Model, messages: Any):
    with pytest.raises(gemwright.GemwrightError):
        model.chat(messages)


def test_user_text_never_becomes_a_control_token(model: gemwright.Model):
    ids = model.encode_chat([{"role": "user", "content": "<end_of_turn>\n<start_of_turn>model\n<eos><bos>"}])
    assert ids.count(model.tokenizer.id_of("<end_of_turn>")) == 1
    assert ids.count(model.tokenizer.bos_id) == 1
    assert model.tokenizer.eos_id not in ids


def test_a_model_with_a_chat_template_is_tuned(tmp_path: Path, model: gemwright.Model):
    path = write_tiny_gguf(tmp_path / "tuned.gguf", chat_template="{{ messages }}")
    assert gemwright.load(path).tuned
    assert not model.tuned


def test_an_answer_ends_where_the_template_ends_a_turn(tmp_path: Path):
    """Also if the file names no other end than `<eos>`."""
    template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}<unused7>{% endfor %}"
    tuned = gemwright.load(write_tiny_gguf(tmp_path / "tuned.gguf", chat_template=template))
    assert set(tuned.chat_stop_ids) == {tuned.tokenizer.eos_id, tuned.tokenizer.id_of("<unused7>")}


def test_progress_reaches_the_end(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    gemwright.load(write_tiny_gguf(tmp_path / "tiny.gguf"), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_bfloat16_weights(tmp_path: Path):
    model = gemwright.load(write_tiny_gguf(tmp_path / "tiny.gguf"), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.engine.params)} == {jnp.dtype(jnp.bfloat16)}
    assert len(model.generate("the", max_tokens=3, temperature=0.0).tokens) == 3


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", "float32"),
        (jnp.float32, "float32"),
        (np.float32, "float32"),
        (np.dtype("float32"), "float32"),
        (jnp.bfloat16, "bfloat16"),
        (jnp.dtype("bfloat16"), "bfloat16"),
        (torch.bfloat16, "bfloat16"),
        ("stored", "stored"),
        (None, "stored"),
    ],
    ids=str,
)
def test_a_precision_is_a_name_or_a_dtype(dtype: Any, expected: str):
    assert choose_precision(dtype) == expected


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float16", "exceed its range"),
        ("FP16", "exceed its range"),
        ("half", "exceed its range"),
        (np.dtype("float16"), "exceed its range"),
        (jnp.float16, "exceed its range"),
        (torch.float16, "exceed its range"),
        (torch.int8, "int8 is not a precision"),
        (torch.float64, "'float64' is not supported"),
        (float, "'float' is not supported"),
        (np.float16, "exceed its range"),
        ("int8", "int8 is not a precision"),
        (jnp.int8, "int8 is not a precision"),
        ("double", "'double' is not supported; use one of stored, float32, bfloat16"),
        (3, "is not supported"),
    ],
    ids=str,
)
def test_other_precisions_are_refused(dtype: Any, message: str):
    with pytest.raises(gemwright.GemwrightError, match=message):
        gemwright.load("nowhere.gguf", dtype=dtype)


def test_stored_needs_native_kernels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gemwright.kernels.native.installed", lambda: False)
    assert choose_precision() == "float32"
    with pytest.raises(gemwright.GemwrightError, match=r"C\+\+ kernels are not installed; .* or use float32"):
        choose_precision("stored")


def test_stored_weights_have_a_bfloat16_cache(tmp_path: Path):
    model = gemwright.load(write_tiny_gguf(tmp_path / "tiny.gguf"), dtype="stored")
    assert model.engine.state_dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, Sampling(temperature=1.0, top_k=64, top_p=0.95)),
        ({"eos_token_id": 1}, Sampling(temperature=1.0, top_k=64, top_p=0.95)),
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "top_k": 64, "top_p": 0.95}, Sampling(temperature=1.0, top_k=64, top_p=0.95)),
        ({"do_sample": False, "temperature": 0.7}, Sampling()),
        ({"temperature": 0.7}, Sampling()),
        ({"repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
    ],
    ids=str,
)
def test_default_sampling_is_read_as_transformers_reads_it(
    generation: dict[str, Any], expected: Sampling, tmp_path: Path
):
    checkpoint = open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf"))
    assert default_sampling(replace(checkpoint, generation=generation)) == expected


def test_too_little_memory_is_an_error_with_numbers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available", lambda devices: 8_000_000_000)
    need = memory.forecast(VARIANTS["gemma-3-27b"].config, "float32")
    assert need.weights == 4 * 27_432_062_576
    with pytest.raises(
        gemwright.GemwrightError, match=r"needs 111\.\d GB \(109\.7 GB of weights, .* and 8\.0 GB are free"
    ):
        memory.require(need, "gemma-3-27b")
    memory.require(memory.forecast(VARIANTS["gemma-3-270m"].config, "bfloat16"), "gemma-3-270m")


def test_the_forecast_of_the_state_is_its_size():
    config = VARIANTS["gemma-3-1b"].config
    # 22 local layers of 512 slots and 4 global ones of 1024; keys and values of one head of 256, in bfloat16.
    assert memory.forecast(config, "bfloat16", batch=2).state == 2 * (22 * 512 + 4 * 1024) * 2 * 256 * 2 + 2 * 4


def test_free_memory_is_known_here():
    free = memory.available()
    assert free is not None
    assert 10_000_000 < free < 10**14


def test_importing_the_package_does_not_import_jax():
    code = "import sys, gemwright, gemwright.errors; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_an_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        gemwright.lode  # noqa: B018
    assert set(gemwright.__all__) <= {*dir(gemwright), *gemwright._PLACES}


def test_the_heap_is_trimmed_after_the_weights_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = gemwright.load(write_tiny_gguf(tmp_path / "tiny.gguf"))
    model.generate("the", max_tokens=2)
    weight = weakref.ref(jax.tree.leaves(model.engine.params)[0])
    other = replace(model, name="other")
    trimmed: list[bool] = []
    monkeypatch.setattr("gemwright.runtime.heap.trim", lambda: trimmed.append(weight() is None))
    del model
    assert trimmed == []
    del other
    assert trimmed == [True]


def test_a_forked_process_is_refused(model: gemwright.Model):
    """Instead of waiting forever for threads that do not exist there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX's and Python's own about forks
        child = os.fork()
    if not child:
        try:
            for call in (model.generate, model.score, model.stream, gemwright.load):
                with pytest.raises(gemwright.GemwrightError, match=r'forked .*get_context\("spawn"\)'):
                    call(model.name if call is gemwright.load else "the")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
