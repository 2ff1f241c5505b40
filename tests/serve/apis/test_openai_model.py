"""OpenAI's API over a real model and scheduler: the replies are those of the Python interface."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

import gemwright
from gemwright.serve.app import create_app
from gemwright.serve.batching.scheduler import Limits
from gemwright.serve.models import ModelRegistry, ModelSource, ServedModel
from gemwright.serve.settings import Settings
from tests.serve.driver import running
from tests.serve.server import run_server

pytestmark = pytest.mark.usefixtures("quick_compilation")
PROMPTS = ["the cat", "and then. Nothing", "in", "The thing over there"]


@pytest.fixture(scope="module")
def real_client(tiny: gemwright.Model) -> Iterator[openai.OpenAI]:
    with running(tiny, Limits(context=128, slots=2)) as scheduler:
        served = ServedModel("tiny", tiny, scheduler)
        app = create_app(ModelRegistry([ModelSource("tiny", lambda: served, (), served)]), Settings())
        with run_server(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            yield client


def test_texts_of_several_clients_equal_each_alone(real_client: openai.OpenAI, tiny: gemwright.Model):
    def complete(prompt: str) -> str:
        options = {"model": "tiny", "prompt": prompt, "max_tokens": 12, "temperature": 0.8, "seed": 3}
        return "".join(chunk.choices[0].text for chunk in real_client.completions.create(**options, stream=True))

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(complete, PROMPTS))
    alone = [tiny.generate(prompt, max_tokens=12, temperature=0.8, seed=3).text for prompt in PROMPTS]
    assert texts == alone


def test_a_chat(real_client: openai.OpenAI, tiny: gemwright.Model):
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat"}]
    reply = real_client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0, n=2)
    expected = tiny.chat(messages, max_tokens=8, temperature=0.0)
    assert [choice.message.content for choice in reply.choices] == [expected.text] * 2
    assert reply.usage.prompt_tokens == expected.prompt_tokens


def test_the_likelihood_of_a_prompt(real_client: openai.OpenAI, tiny: gemwright.Model):
    """As lm-eval's local-completions reads it."""
    ids = tiny.encode("the cat and the thing")
    reply = real_client.completions.create(
        model="tiny", prompt=[ids], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    logprobs = reply.choices[0].logprobs
    score = tiny.score(ids)
    np.testing.assert_allclose(logprobs.token_logprobs[1:-1], score.logprobs, rtol=0, atol=2e-2)
    assert logprobs.token_logprobs[0] is None
    for token, logprob, top in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True))[
        1:
    ]:
        assert top[token] == logprob <= max(top.values())


def test_a_chosen_format(real_client: openai.OpenAI):
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    messages = [{"role": "user", "content": "the cat"}]
    reply = real_client.chat.completions.create(model="tiny", messages=messages, response_format=form)
    assert reply.choices[0].message.content in ('{"a":"x"}', '{"a":"y"}')
