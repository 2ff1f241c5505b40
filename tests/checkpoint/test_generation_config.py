"""generation_config.json: the settings that transformers reads of it."""

from typing import Any

import pytest
import transformers

from gemwright.checkpoint.configs.huggingface import read_generation_config
from gemwright.errors import CheckpointError


def test_generation_config_is_the_one_transformers_reads() -> None:
    data = {
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "eos_token_id": [1, 106],
        "pad_token_id": 0,
        "top_k": 64,
        "top_p": 0.95,
        "min_p": None,
        "temperature": 1.0,
        "repetition_penalty": 1.1,
        "max_new_tokens": 20,
        "max_length": 40,
        "transformers_version": "4.51.3",
    }
    values = read_generation_config(data, "generation_config.json")
    assert values == {k: data[k] for k in data.keys() - {"cache_implementation", "min_p", "transformers_version"}}
    theirs = transformers.GenerationConfig.from_dict(values)
    assert values == {key: getattr(theirs, key) for key in values}
    assert read_generation_config(values, "generation_config.json") == values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_sample", 1),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -2),
        ("top_k", 2.5),
        ("top_p", 1.5),
        ("min_p", "0"),
        ("repetition_penalty", 0.0),
        ("eos_token_id", []),
        ("eos_token_id", [1, -1]),
        ("eos_token_id", [[1]]),
        ("eos_token_id", True),
        ("bos_token_id", 10**30),
        ("max_new_tokens", 0),
    ],
)
def test_a_bad_generation_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"g.json: key '{key}' is "):
        read_generation_config({key: value}, "g.json")


def test_values_that_other_programs_write_are_read() -> None:
    data = {"top_k": 64.0, "eos_token_id": [1.0, 106], "pad_token_id": -1, "bos_token_id": -1, "max_length": -1}
    assert read_generation_config(data, "g.json") == {"top_k": 64, "eos_token_id": [1, 106]}
    assert read_generation_config({"top_k": -1}, "g.json") == {"top_k": 0}
    assert read_generation_config({"top_k": -1.0, "temperature": 1}, "g.json") == {"top_k": 0, "temperature": 1.0}
