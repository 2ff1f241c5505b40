"""Small vision models from images and text to text, against transformers and its processors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import gemwright
from gemwright.checkpoint.convert import convert
from gemwright.generate.prompts import Prompt
from gemwright.images import image_prompt
from gemwright.images.image_prompt import Image as Pixels
from gemwright.text.image_format import MARKERS, SOFT_TOKEN
from tests.tiny.hf import VISION_KINDS, write_model

TOKENS = 10


@pytest.fixture(scope="module", params=VISION_KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as gemwright writes it, with all files that transformers needs."""
    place = tmp_path_factory.mktemp(request.param)
    convert(write_model(place / "theirs", request.param), place / "ours", "huggingface")
    return place / "ours"


@pytest.fixture(scope="module")
def model(folder: Path) -> gemwright.Model:
    return gemwright.load(folder, dtype="float32")


def _image(seed: int, height: int = 40, width: int = 60) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _theirs(folder: Path, prompt: Prompt, pixels: Any) -> list[int]:
    """Return transformers' greedy continuation of the same ids."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([prompt.ids])
    ids[ids == SOFT_TOKEN] = model.config.image_token_index
    # PaliGemma's kinds mark the prefix (0) and the suffix, Gemma 3's an image's soft tokens (1) and text.
    kinds = torch.zeros_like(ids)
    if model.config.model_type == "gemma3":
        kinds += torch.tensor(prompt.groups >= 0)
    given = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids), "token_type_ids": kinds}
    with torch.no_grad():
        generated = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return generated[0, ids.shape[1] :].tolist()


def _pixels(model: gemwright.Model, images: list[Pixels]) -> torch.Tensor:
    from gemwright.images.preprocess import resize_square

    assert model.image_prompter is not None
    sized = [resize_square(p, model.image_prompter.vision.image_size, model.image_prompter.resample) for p in images]
    return torch.tensor(np.stack(sized)).permute(0, 3, 1, 2)


def test_the_text_equals_that_of_transformers(folder: Path, model: gemwright.Model):
    image = _image(1)
    assert model.image_prompter is not None
    prompt = model.image_prompter.before("the cat", [[image]])
    completion = model.generate("the cat", [image], max_tokens=TOKENS, temperature=0.0)
    theirs = _theirs(folder, prompt, _pixels(model, [image]))
    assert completion.tokens == theirs[: len(completion.tokens)]
    assert len(completion.tokens) == TOKENS or theirs[len(completion.tokens)] in model.stop_ids
    assert completion.prompt_tokens == len(prompt)


def test_a_batch_equals_each_alone(model: gemwright.Model):
    texts, images = ["the", "and then a dog"], [[_image(2)], [_image(3)]]
    options: Any = {"max_tokens": 6, "temperature": 1.0}
    together = model.generate(texts, images, seed=[4, 5], **options)
    alone = [
        model.generate(text, own, seed=seed, **options) for text, own, seed in zip(texts, images, (4, 5), strict=True)
    ]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert "".join(model.stream(texts[0], images[0], seed=4, **options)) == alone[0].text


def test_a_text_is_scored_after_an_image(model: gemwright.Model):
    image = _image(1)
    completion = model.generate("the", [image], max_tokens=4, temperature=0.0, top_logprobs=1)
    score = model.score(completion.text, "the", [image])
    if score.tokens[1:] == completion.tokens:  # text that is encoded as it was written
        np.testing.assert_allclose(score.logprobs, completion.logprobs, rtol=0, atol=1e-4)
    other = model.score(completion.text, "the", [_image(9)])
    assert other.logprobs != score.logprobs
    assert len(score.logprobs) == len(score.tokens) - 1


def test_prompts_are_those_of_the_processor(folder: Path, model: gemwright.Model):
    """Id by id, except that ours never merges an image's empty lines with adjacent newlines."""
    processor, prompter = AutoProcessor.from_pretrained(folder, backend="pil"), model.image_prompter
    assert prompter is not None
    image = _image(5)
    marker = "<image>" if prompter.style == "prefix" else "<start_of_image>"
    given = processor(text=f"{marker}the cat", images=Image.fromarray(image), return_tensors="np")
    soft_token = processor.tokenizer.convert_tokens_to_ids(
        "<image>" if prompter.style == "prefix" else "<image_soft_token>"
    )
    theirs = [SOFT_TOKEN if token == soft_token else token for token in given["input_ids"][0].tolist()]
    assert list(prompter.before("the cat", [[image]]).ids) == theirs
    np.testing.assert_array_equal(given["pixel_values"], _pixels(model, [image]).numpy())


def test_an_image_is_encoded_once(model: gemwright.Model, monkeypatch: pytest.MonkeyPatch):
    image = _image(6)
    first = model.generate("the", [image], max_tokens=3, temperature=0.0)
    monkeypatch.setattr(image_prompt, "encode", None)
    assert model.generate("the", [image], max_tokens=3, temperature=0.0).tokens == first.tokens


def test_conversations_with_images(model: gemwright.Model):
    talk: Any = [
        {"role": "user", "content": "the cat", "images": [_image(7), _image(8)]},
        {"role": "assistant", "content": "and"},
        {"role": "user", "content": "the dog", "images": [_image(7)]},
    ]
    assert model.image_prompter is not None
    if model.image_prompter.style == "prefix":
        with pytest.raises(gemwright.GemwrightError, match="does not accept images"):
            model.encode_chat(talk)
        return
    ids = model.encode_chat(talk)
    assert ids.count(SOFT_TOKEN) == 3 * model.image_prompter.vision.tokens
    assert ids.count(model.tokenizer.id_of("<start_of_image>")) == 3
    assert (
        "".join(model.stream(talk, max_tokens=5, temperature=0.0))
        == model.chat(talk, max_tokens=5, temperature=0.0).text
    )


def test_wide_images_may_have_crops(model: gemwright.Model):
    assert model.image_prompter is not None
    wide = _image(9, 300, 900)
    if model.image_prompter.style == "prefix":
        with pytest.raises(gemwright.GemwrightError, match="is for Gemma 3"):
            model.generate("the", [wide], pan_and_scan=True)
        return
    whole = model.generate("the", [wide], max_tokens=1)
    crops = model.generate("the", [wide], max_tokens=1, pan_and_scan=True)
    tokens = model.image_prompter.vision.tokens
    assert crops.prompt_tokens >= whole.prompt_tokens + 3 * tokens


def test_a_text_model_does_not_accept_images(tmp_path: Path):
    from tests.tiny.gguf import write_tiny_gguf

    text_only = gemwright.load(write_tiny_gguf(tmp_path / "tiny.gguf"))
    for call in (
        lambda: text_only.generate("the", [_image(0)]),
        lambda: text_only.score("the", images=[_image(0)]),
        lambda: text_only.chat([{"role": "user", "content": "the", "images": [_image(0)]}]),
    ):
        with pytest.raises(gemwright.GemwrightError, match="does not accept images"):
            call()
    with pytest.raises(gemwright.GemwrightError, match="put the image into a list"):
        text_only.chat([{"role": "user", "content": "the", "images": "cat.jpg"}])
    with pytest.raises(gemwright.GemwrightError, match="belong to its messages"):
        text_only.stream([{"role": "user", "content": "the"}], [_image(0)])
    with pytest.raises(gemwright.GemwrightError, match="images has 1 entries for 2 texts"):
        text_only.generate(["a", "b"], [[_image(0)]])


def test_markers_at_the_front_stand_for_the_images(model: gemwright.Model):
    prompter = model.image_prompter
    assert prompter is not None
    marker, image = MARKERS[prompter.style], _image(5)
    plain = list(prompter.before("the cat", [[image], [image]]).ids)
    for text in (f"{marker}{marker}the cat", f"{marker}{marker}<bos>the cat", f"{marker} {marker}<bos>the cat"):
        assert list(prompter.before(text, [[image], [image]]).ids) == plain
    if prompter.style == "prefix":
        assert list(prompter.before(f"{marker}{marker}<bos>the cat\n", [[image], [image]]).ids) == plain
    for text in (f"{marker}the cat", f"the {marker}{marker}", f"{marker}{marker}{marker}the", f"{marker}the {marker}"):
        with pytest.raises(gemwright.GemwrightError, match="for 2 images; write it once for each image"):
            prompter.before(text, [[image], [image]])
