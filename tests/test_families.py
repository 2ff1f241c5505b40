"""Every published variant is of the family that its row names, and the family's names are those of other tools."""

import subprocess
import sys

import gguf
import pytest
import transformers

from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.checkpoint.open import open_checkpoint
from gemwright.families import CODEGEMMA, FAMILIES, GEMMA_1, PALIGEMMA, find_family
from gemwright.text.chat import FORMATS
from gemwright.variants import VARIANTS
from tests.tiny.hf import TEXT_KINDS, VISION_KINDS, write_model

BY_NAME = {family.name: family for family in FAMILIES}


def test_names_are_unique_and_every_family_is_published():
    assert len(BY_NAME) == len(FAMILIES)
    assert {variant.family for variant in VARIANTS.values()} == BY_NAME.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_found_as_its_family(name: str):
    family = find_family(VARIANTS[name].config)
    assert family == (GEMMA_1 if VARIANTS[name].family == CODEGEMMA.name else BY_NAME[VARIANTS[name].family])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_exist_in_other_tools(family):
    for names in filter(None, (family.text_model, family.vision_model)):
        assert names.model_type in transformers.CONFIG_MAPPING
        assert hasattr(transformers, names.model_class)
    if family.processor:
        assert hasattr(transformers, family.processor.name)
        assert hasattr(transformers, family.processor.image_class)
    if family.gguf:
        assert family.gguf in gguf.MODEL_ARCH_NAMES.values()
    assert family.chat_format in FORMATS
    assert (family.image_prompt is None) == (family.processor is None) == (family.vision_model is None)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_config_that_is_written_has_the_names_of_the_family(name: str):
    config = VARIANTS[name].config
    family, data = find_family(config), to_huggingface(config, "float32")
    names = family.vision_model if config.vision else family.text_model
    assert names is not None
    assert (data["model_type"], data["architectures"]) == (names.model_type, [names.model_class])


def test_images_are_resized_as_the_code_of_the_format_does():
    assert [PALIGEMMA.resampling(form) for form in ("safetensors", "npz", "orbax")] == [
        "bicubic",
        "bilinear",
        "bilinear",
    ]
    assert {BY_NAME["Gemma 3"].resampling(form) for form in ("safetensors", "orbax", "gguf")} == {"bilinear"}


@pytest.mark.parametrize("kind", [*TEXT_KINDS, "recurrent_gemma", *VISION_KINDS])
def test_a_checkpoint_has_its_family(kind: str, tmp_path):
    family = open_checkpoint(write_model(tmp_path / "model", kind)).family
    expected = {
        "gemma": "Gemma 1",
        "gemma, full heads": "Gemma 1",
        "gemma2": "Gemma 2",
        "vaultgemma": "VaultGemma",
        "gemma3_text": "Gemma 3",
        "gemma3": "Gemma 3",
        "recurrent_gemma": "RecurrentGemma",
        "paligemma": "PaliGemma",
        "paligemma2": "PaliGemma 2",
    }
    assert family.name == expected[kind]


def test_the_table_needs_no_jax():
    code = (
        "import sys, gemwright.families, gemwright.variants; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
