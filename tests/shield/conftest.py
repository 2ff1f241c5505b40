"""A tiny model whose vocabulary has Yes and No, as a checkpoint of transformers."""

from pathlib import Path

import pytest

import gemwright
from gemwright.shield.policy import Policy
from tests.tiny import hf, vocabulary

POLICIES = tuple(
    Policy(name, {"input": f"no {name} in a text", "output": f"no {name} in any reply"})
    for name in ("hate", "harm", "insults", "lies")
)
TEMPLATE = """\
{{ bos_token }}Judge what follows.

<start_of_turn>
Person: {{ messages[0]['content'] | trim }}
<end_of_turn>
{% if messages | length > 1 %}
<start_of_turn>
Machine: {{ messages[1]['content'] | trim }}
<end_of_turn>
{% endif %}
Rule:

* {{ guideline | trim }}

===

Is the rule broken? {{ 'Unused' if add_generation_prompt }}"""
"""A template that takes the words of a policy, with the parts of ShieldGemma's in its order and in other words."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "MERGES", [*vocabulary.MERGES, "Ye", "es", "Yes", "No"])
        patch.setitem(hf._TEXT, "max_position_embeddings", 1024)
        folder = tmp_path_factory.mktemp("shield") / "model"
        network = hf.make_model("gemma")
        for name, parameter in network.named_parameters():
            if "q_proj" in name or "k_proj" in name:  # so that early tokens matter
                parameter.data *= 3
        network.save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(vocabulary.make_vocabulary("gemma").sentencepiece_model())
        return folder


@pytest.fixture(scope="session")
def model(folder: Path) -> gemwright.Model:
    return gemwright.load(folder, dtype="float32")


@pytest.fixture(scope="session")
def with_template(folder: Path) -> gemwright.Model:
    """The same with a template that takes a guideline."""
    file = folder / "chat_template.jinja"
    file.write_text(TEMPLATE)
    try:
        return gemwright.load(folder, dtype="float32")
    finally:
        file.unlink()


def write_policies(file: Path, *policies: Policy) -> Path:
    """Write a policy file."""
    tables = [
        f'[[policy]]\nname = "{policy.name}"\nthreshold = {policy.threshold}\n'
        + "".join(f'{mode} = "{words}"\n' for mode, words in policy.guidelines.items())
        for policy in policies
    ]
    file.write_text("\n".join(tables))
    return file
