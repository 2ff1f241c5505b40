"""Policy files."""

from pathlib import Path

import pytest

from gemwright.errors import GemwrightError
from gemwright.shield.policy import Policy, read_policies
from tests.documents import ROOT
from tests.shield.conftest import POLICIES, write_policies


def test_policies_are_read(tmp_path: Path):
    given = (*POLICIES, Policy("spam", {"output": "no spam"}, 0.25))
    assert read_policies(write_policies(tmp_path / "policy.toml", *given)) == given


def test_example_of_the_page(tmp_path: Path):
    page = (ROOT / "docs" / "shield.md").read_text()
    lines = page[page.index("    [[policy]]") : page.index("A policy with `input`")].splitlines()
    (tmp_path / "policy.toml").write_text("\n".join(line.strip() for line in lines))
    first, second = read_policies(tmp_path / "policy.toml")
    assert (first.name, first.threshold, list(first.guidelines)) == ("insults", 0.6, ["input", "output"])
    assert (second.name, second.threshold, list(second.guidelines)) == ("medical advice", 0.5, ["output"])


def test_threshold_is_a_half_unless_given(tmp_path: Path):
    file = tmp_path / "policy.toml"
    file.write_text('[[policy]]\nname = "spam"\ninput = "no spam"\n')
    assert read_policies(file)[0].threshold == 0.5


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "must have tables"),
        ("policy = 3", "must have tables"),
        ("policy = [1]", "Policy 1 of .* is not a table"),
        ("[[policy]]", "needs a name"),
        ('[[policy]]\nname = "a"', "needs a name"),
        ('[[policy]]\nname = "a"\ninput = ""', "not empty"),
        ('[[policy]]\nname = "a"\ninput = 3', "must be texts"),
        ('[[policy]]\nname = "a"\ninput = "b"\nthreshold = 2', "from 0 to 1"),
        ('[[policy]]\nname = "a"\ninput = "b"\nthreshold = nan', "from 0 to 1"),
        ('[[policy]]\nname = "a"\ninput = "b"\nthreshold = true', "from 0 to 1"),
        ('[[policy]]\nname = "a"\ninputs = "b"', "has 'inputs'; its keys are name, input, output, threshold"),
        ('[[policy]]\nname = "a"\ninput = "b"\n[[policy]]\nname = "a"\ninput = "b"', "two policies of one name"),
        ('[other]\n[[policy]]\nname = "a"\ninput = "b"', "nothing else"),
        ("[[policy", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
        ("#" * (1 << 20) + "#", "more than"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str | bytes, problem: str):
    file = tmp_path / "policy.toml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(GemwrightError, match=problem):
        read_policies(file)


def test_missing_file(tmp_path: Path):
    with pytest.raises(GemwrightError, match="cannot be read"):
        read_policies(tmp_path / "none.toml")
