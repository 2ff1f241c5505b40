"""`--shield` of generate and chat: sentences, exit codes and what is shown."""

import json
from pathlib import Path

import pytest

import gemwright
from gemwright.shield.classifier import Shield
from gemwright.shield.policy import Policy
from tests.cli.conftest import Run, run  # noqa: F401
from tests.shield.conftest import write_policies

pytestmark = pytest.mark.usefixtures("quick_compilation")
ASKED = "the thing"
NONE = Policy("nothing", {"input": "no thing", "output": "no thing"}, 1.0)
ALL_INPUTS = Policy("inputs", {"input": "no thing"}, 0.0)
ALL_OUTPUTS = Policy("outputs", {"output": "no thing"}, 0.0)


@pytest.fixture
def arguments(folder: Path, tmp_path: Path):
    def make(*policies: Policy) -> list[object]:
        file = write_policies(tmp_path / "policy.toml", *policies)
        common = ["--model", folder, "--dtype", "float32", "--temperature", "0", "--max-tokens", "8"]
        return [*common, "--shield", folder, "--policy", file]

    return make


def test_generate(run: Run, arguments, model: gemwright.Model):  # noqa: F811
    expected = model.generate(ASKED, max_tokens=8, temperature=0.0).text
    passed = run("generate", ASKED, *arguments(NONE))
    assert (passed.code, passed.out) == (0, expected + "\n")
    refused = run("generate", ASKED, *arguments(NONE, ALL_INPUTS))
    assert (refused.code, refused.out) == (3, "")
    assert refused.err.startswith("gemwright: The message is refused by the policy 'inputs' (score 0.")
    assert refused.err.count("\n") == 1
    ended = run("generate", ASKED, *arguments(NONE, ALL_OUTPUTS))
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("gemwright: The reply is refused by the policy 'outputs' (score 0.")


@pytest.mark.slow
def test_generate_several_as_json(run: Run, arguments, model: gemwright.Model):  # noqa: F811
    """The texts that pass are printed with those that do not."""
    texts = [ASKED, "and in the other"]
    replies = [completion.text for completion in model.generate(texts, max_tokens=8, temperature=0.0)]
    policy = Policy("some", {"output": "no thing"})
    scores = [Shield(model, (policy,)).score(*pair)["some"] for pair in zip(texts, replies, strict=True)]
    policy = Policy("some", policy.guidelines, sum(scores) / 2)
    result = run("generate", *texts, "--json", *arguments(policy))
    records = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 3
    for record, reply, score in zip(records, replies, scores, strict=True):
        passed = score < policy.threshold
        assert record["text"] == (reply if passed else "")
        assert record["finish_reason"] == ("length" if passed else "content_filter")
        assert bool(record["tokens"]) == passed


def test_chat(run: Run, arguments):  # noqa: F811
    assert run("chat", *arguments(NONE), stdin=ASKED.encode()).code == 0
    refused = run("chat", *arguments(ALL_INPUTS), stdin=ASKED.encode())
    assert (refused.code, refused.out) == (3, "")
    ended = run("chat", *arguments(ALL_OUTPUTS), stdin=ASKED.encode())
    assert (ended.code, ended.out) == (3, "")


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_both_options_are_needed(run: Run, tmp_path: Path, command: str):  # noqa: F811
    alone = run(command, "--policy", tmp_path / "policy.toml")
    assert (alone.code, alone.err) == (2, "gemwright: --policy needs --shield; pass both.\n")
    alone = run(command, "--shield", "gemma-3-270m")
    assert (alone.code, alone.err) == (2, "gemwright: --shield needs --policy; pass both.\n")


def test_wrong_policy_file(run: Run, folder: Path, tmp_path: Path):  # noqa: F811
    missing = run("generate", ASKED, "--model", folder, "--shield", folder, "--policy", tmp_path / "none.toml")
    assert missing.code == 2
    assert "none.toml cannot be read" in missing.err
