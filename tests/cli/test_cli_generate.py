import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemwright.cli.infill import split
from gemwright.kernels.native import native_enabled
from gemwright.loading import load
from tests.helpers import english_text

NATIVE = pytest.mark.skipif(not native_enabled(), reason="needs the native kernels")
GREEDY = {"temperature": 0.0, "max_tokens": 12}


def test_greedy_text_is_the_models(run, tiny, tiny_model):
    result = run("generate", "hello", "-m", tiny, "--temperature", 0, "--max-tokens", 12)
    assert (result.code, result.out, result.err) == (0, tiny_model.generate("hello", **GREEDY).text + "\n", "")


@pytest.mark.parametrize("how", [("--lookup",), ("--draft",)], ids=str)
def test_speculation_gives_the_same_text(run, tiny, tiny_model, how):
    options = (*how, tiny) if how == ("--draft",) else how
    result = run("generate", "hello", "-m", tiny, "--temperature", 0, "--max-tokens", 30, *options, "--verbose")
    assert result.out == tiny_model.generate("hello", temperature=0.0, max_tokens=30).text + "\n"
    accepted = re.search(r"speculation +\d+ of \d+ draft tokens accepted", result.err)
    assert how == ("--lookup",) or accepted


def test_standard_input_is_one_prompt_without_its_last_newline(run, tiny, tiny_model):
    result = run("generate", "-m", tiny, "--temperature", 0, "--max-tokens", 12, stdin=b"the\nhen\n")
    assert result.out == tiny_model.generate("the\nhen", **GREEDY).text + "\n"


def test_prompts_of_files(run, tiny, tiny_model, tmp_path: Path):
    (tmp_path / "prompt.txt").write_bytes(b"the\r\nhen\r\n")
    options = ("-m", tiny, "--temperature", 0, "--max-tokens", 12)
    result = run("generate", "-", "--file", tmp_path / "prompt.txt", *options, stdin=b"hello\r\n")
    assert result.out == "".join(tiny_model.generate(text, **GREEDY).text + "\n" for text in ("hello", "the\r\nhen"))
    assert run("generate", "--file", "-", *options, stdin=b"hello").out == result.out.splitlines()[0] + "\n"


def test_prompt_is_echoed_on_request(run, tiny, tiny_model):
    result = run("generate", "hello", "-m", tiny, "--temperature", 0, "--max-tokens", 12, "--echo")
    assert result.out == "hello" + tiny_model.generate("hello", **GREEDY).text + "\n"


def test_chat_template_on_request(run, tiny, tiny_model):
    options = ("-m", tiny, "--temperature", 0, "--max-tokens", 12, "--chat")
    hello = [{"role": "user", "content": "hello"}]
    result = run("generate", "hello", *options)
    assert (result.out, result.err) == (tiny_model.chat(hello, **GREEDY).text + "\n", "")
    system = [{"role": "system", "content": "be good"}]
    texts = [tiny_model.chat([*system, {"role": "user", "content": text}], **GREEDY).text for text in ("hello", "hen")]
    result = run("generate", "hello", "hen", *options, "--system", "be good")
    assert result.out == "".join(f"{text}\n" for text in texts)


@pytest.mark.parametrize("prompt", ["Is it a hen?", "write a poem"])
def test_question_to_a_chat_model_gets_a_hint(run, tiny, prompt: str):
    result = run("generate", prompt, "-m", tiny, "--max-tokens", 1)
    assert (result.code, result.err.count("\n")) == (0, 1)
    assert result.err.endswith("is a chat model, and the prompt is continued as text; add --chat for an answer.\n")


def test_samples_use_consecutive_seeds(run, tiny):
    options = ("-m", tiny, "--max-tokens", 8, "--seed", 5, "--json")
    records = [json.loads(line) for line in run("generate", "the", "-n", 3, *options).out.splitlines()]
    assert [record["settings"]["seed"] for record in records] == [5, 6, 7]
    assert len({record["text"] for record in records}) == 3
    chats = [json.loads(line) for line in run("generate", "the", "-n", 2, "--chat", *options).out.splitlines()]
    assert [record["settings"]["seed"] for record in chats] == [5, 6]
    assert chats[0]["text"] != chats[1]["text"]


def test_penalties(run, tiny, tiny_model):
    options = ("-m", tiny, "--temperature", 0, "--max-tokens", 12, "--presence-penalty", 1.5, "--frequency-penalty", 2)
    expected = tiny_model.generate("hello", **GREEDY, presence_penalty=1.5, frequency_penalty=2.0).text
    assert run("generate", "hello", *options).out == expected + "\n"
    assert expected != tiny_model.generate("hello", **GREEDY).text


def test_several_prompts_one_after_another(run, tiny, tiny_model):
    result = run("generate", "the", "hen and", "-m", tiny, "--temperature", 0, "--max-tokens", 12)
    assert result.out == "".join(tiny_model.generate(text, **GREEDY).text + "\n" for text in ("the", "hen and"))


def test_json_is_complete_and_can_be_repeated(run, tiny, tiny_model):
    options = (
        "-m",
        tiny,
        "--max-tokens",
        9,
        "--top-k",
        8,
        "--min-p",
        0.01,
        "--stop",
        "qq",
        "--top-logprobs",
        2,
        "--json",
    )
    records = [json.loads(line) for line in run("generate", "the", "the", *options).out.splitlines()]
    assert len(records) == 2
    for record in records:
        sampling = record["settings"]
        assert sampling.items() >= {"top_k": 8, "top_p": 0.95, "min_p": 0.01, "max_tokens": 9, "stop": ["qq"]}.items()
        again = json.loads(run("generate", "the", "--seed", sampling["seed"], *options).out)
        assert (again["tokens"], again["settings"]) == (record["tokens"], sampling)
        assert record["text"] == tiny_model.tokenizer.decode(record["tokens"])
        assert record["completion_tokens"] == len(record["tokens"]) == len(record["logprobs"]) == 9
        assert record["prompt_tokens"] == len(tiny_model.encode("the"))
        assert record["finish_reason"] == "length"
        assert [len(step) for step in record["top_logprobs"]] == [2] * 9
        assert all(step[0]["logprob"] >= step[1]["logprob"] for step in record["top_logprobs"])
        prefix = tiny_model.encode("the")
        logprobs = tiny_model.engine.score([[*prefix, *record["tokens"]]])[0][len(prefix) - 1 :]
        np.testing.assert_allclose(record["logprobs"], logprobs, atol=1e-4)
    assert records[1]["settings"]["seed"] == (records[0]["settings"]["seed"] + 1) % 2**32


def test_seeds_are_random_unless_given(run, tiny):
    drawn = [json.loads(run("generate", "a", "-m", tiny, "--max-tokens", 1, "--json").out) for _ in range(3)]
    assert len({record["settings"]["seed"] for record in drawn}) == 3


def test_stop_string(run, tiny, tiny_model):
    whole = tiny_model.generate("hello", **GREEDY).text
    stop = whole[4:6]
    result = run("generate", "hello", "-m", tiny, "--temperature", 0, "--max-tokens", 12, "--stop", stop, "--json")
    record = json.loads(result.out)
    assert (record["text"], record["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_logprobs_as_text(run, tiny, tiny_model):
    result = run("generate", "hello", "-m", tiny, "--temperature", 0, "--max-tokens", 3, "--top-logprobs", 2)
    text, _, table = result.out.partition("\n\n")
    completion = tiny_model.generate("hello", temperature=0.0, max_tokens=3, top_logprobs=2)
    assert text == completion.text
    rows = [line.split() for line in table.splitlines()]
    assert [row[0] for row in rows] == [row[2] for row in rows] == [f"{value:.4f}" for value in completion.logprobs]


def test_logprobs_alone(run, tiny, tiny_model):
    options = ("-m", tiny, "--temperature", 0, "--max-tokens", 3, "--logprobs")
    expected = tiny_model.generate("hello", temperature=0.0, max_tokens=3, logprobs=True)
    record = json.loads(run("generate", "hello", *options, "--json").out)
    assert record["logprobs"] == pytest.approx(expected.logprobs)
    assert record["top_logprobs"] == [[], [], []]
    rows = run("generate", "hello", *options).out.partition("\n\n")[2].splitlines()
    assert [row.split()[0] for row in rows] == [f"{value:.4f}" for value in expected.logprobs]
    plain = json.loads(run("generate", "hello", *options[:-1], "--json").out)
    assert not {"logprobs", "top_logprobs"} & plain.keys()


@pytest.mark.parametrize("dtype", [pytest.param("stored", marks=NATIVE), "float32", "bfloat16"])
def test_dtype(run, tiny, dtype: str):
    result = run("generate", "hello", "-m", tiny, "--temperature", 0, "--max-tokens", 3, "--dtype", dtype, "--json")
    record = json.loads(result.out)
    assert record["settings"]["dtype"] == dtype
    model = load(tiny, dtype=None if dtype == "stored" else dtype)  # stored is the default here
    assert record["text"] == model.generate("hello", temperature=0.0, max_tokens=3).text


def test_verbose_prints_to_standard_error_only(run, tiny):
    quiet = run("generate", "a", "-m", tiny, "--max-tokens", 4, "--seed", 7, "--top-k", 5)
    result = run("generate", "a", "-m", tiny, "--max-tokens", 4, "--seed", 7, "--top-k", 5, "--verbose")
    assert result.out == quiet.out
    printed = dict(line.split(maxsplit=1) for line in result.err.splitlines() if line)
    assert printed["path"] == str(tiny)
    assert printed["defaults"] == "temperature 1, top-k 64, top-p 0.95, from published defaults"
    assert printed["sampling"] == "temperature 1, top-k 5, top-p 0.95, seed 7"
    assert {"model", "weights", "memory", "load", "prompt", "first", "speed"} <= printed.keys()


def test_score(run, tiny, tiny_model, tmp_path: Path):
    expected = tiny_model.score("the hen\n")
    (tmp_path / "text").write_text("the hen\n")
    record = json.loads(run("score", "--file", tmp_path / "text", "-m", tiny, "--json").out)
    assert record["tokens"] == expected.tokens
    assert "".join(record["pieces"][1:]) == "the hen\n"
    np.testing.assert_allclose(record["logprobs"], expected.logprobs, atol=1e-5)
    assert record["perplexity"] == pytest.approx(float(np.exp(-np.mean(expected.logprobs))), rel=1e-5)

    lines = run("score", "the hen", "-m", tiny).out.splitlines()
    assert lines[1].split(maxsplit=1) == [f"{expected.logprobs[1]:.4f}", f'"{record["pieces"][2]}"']
    assert lines[-1] == f"perplexity      {tiny_model.score('the hen').perplexity:.4f}"
    assert run("score", "-m", tiny, stdin=b"the hen\n").out.splitlines() == lines


def test_score_in_windows(run, tiny, tiny_model):
    record = json.loads(run("score", "-", "-m", tiny, "--stride", 512, "--json", stdin=b"the hen " * 2000).out)
    expected = tiny_model.score("the hen " * 2000, stride=512)
    assert record["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)


def test_infill_at_a_position_in_a_file(run, tiny, tiny_model, tmp_path: Path):
    (tmp_path / "code.py").write_text("def f():\n    return \n\nf()\n")
    result = run("infill", tmp_path / "code.py", "--line", 2, "-m", tiny, "--max-tokens", 9)
    middle = tiny_model.infill("def f():\n    return ", "\n\nf()\n", max_tokens=9).text
    assert result.out == middle + "\n"
    code = (tmp_path / "code.py").read_bytes()
    assert run("infill", "-", "--line", 2, "-m", tiny, "--max-tokens", 9, stdin=code).out == result.out
    ends = ("--before", "def f():\n    return ", "--after", "\n\nf()\n")
    assert json.loads(run("infill", *ends, "-m", tiny, "--max-tokens", 9, "--json").out)["text"] == middle


@given(st.text("ab\n\r", max_size=30), st.data())
def test_split_loses_nothing(text: str, data: st.DataObject):
    lines = text.split("\n")
    line = data.draw(st.integers(1, len(lines)))
    column = data.draw(st.none() | st.integers(1, len(lines[line - 1].removesuffix("\r")) + 1))
    before, after = split(text, line, column)
    assert before + after == text
    assert before.count("\n") == line - 1
    if column is None:
        assert after.removeprefix("\r")[:1] in ("", "\n")
    else:
        assert len(before.rpartition("\n")[2]) == column - 1


@pytest.mark.parametrize(("line", "column"), [(3, None), (1, 4)])
def test_no_such_position(line: int, column: int | None):
    with pytest.raises(ValueError, match="has 2 "):
        split("ab\nc", line, column)


def test_real_weights(run, demo_gguf: Path):
    inspected = run("inspect", "gemma-3-270m", "--json")
    assert json.loads(inspected.out)["variants"] == ["gemma-3-270m"]
    assert json.loads(inspected.out)["path"] == str(demo_gguf)
    assert inspected.err.count("https://ai.google.dev/gemma/terms") == 1
    result = run("generate", "Monday, Tuesday, Wednesday,", "--temperature", 0, "--max-tokens", 1)
    assert (result.code, result.err) == (0, "")  # the terms are printed once
    assert result.out == " Thursday\n"


def test_token_ids_as_a_prompt(run, tiny, tiny_model):
    ids = tiny_model.encode("the hen")
    options = ("-m", tiny, "--temperature", 0, "--max-tokens", 12)
    expected = tiny_model.generate("the hen", **GREEDY).text + "\n"
    assert run("generate", "--ids", " ".join(map(str, ids)), *options).out == expected
    assert run("generate", "--ids", ", ".join(map(str, ids)), str(ids[0]), *options).out.startswith(expected)
    assert "is not a list of token ids" in run("generate", "--ids", "the hen", "-m", tiny).err
    assert "leave out --chat" in run("generate", "--ids", "2", "--chat", "-m", tiny).err


def test_marked_text_is_detected(run, tiny, tmp_path: Path):
    assert run("watermark", tmp_path / "new.json").out == f"{tmp_path / 'new.json'}\n"
    keys, marked = tmp_path / "keys.json", tmp_path / "marked.txt"
    keys.write_text(json.dumps({"keys": list(range(1000, 31000, 1000)), "ngram_len": 2}))
    sampling = ("--top-k", 64, "--temperature", 1.5, "--seed", 1, "--max-tokens", 100)
    marked.write_text(run("generate", "hello", "-m", tiny, *sampling, "--watermark", keys).out)
    found = json.loads(run("detect", "--file", marked, "--watermark", keys, "-m", tiny, "--json").out)
    other = json.loads(run("detect", "-m", tiny, "--watermark", keys, "--json", stdin=english_text().encode()).out)
    assert found["p_value"] < 1e-3 < other["p_value"]
    shown = run("detect", marked.read_text(), "--watermark", keys, "-m", tiny)
    assert (shown.code, shown.err) == (0, "")
    assert f"mean g value  {found['mean']:.4f} (without the watermark about {found['expected']:.4f})" in shown.out
