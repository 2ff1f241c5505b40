"""Replies of a model in training to a few prompts."""

from collections.abc import Sequence

from gemwright.api import Model
from gemwright.checkpoint.open import Checkpoint
from gemwright.generate.engine import Engine
from gemwright.generate.sampling import Sampling
from gemwright.loading.model import make_chat_template
from gemwright.model.stack import StackedWeights, unstack
from gemwright.text.tokenizer import Tokenizer

MAX_TOKENS = 60


def sample(
    checkpoint: Checkpoint, tokenizer: Tokenizer, params: StackedWeights, prompts: Sequence[str], *, chat: bool
) -> tuple[str, ...]:
    """Return the likeliest continuation of each prompt, or the reply to it in a chat.

    The weights of layers are copied meanwhile.
    """
    config = checkpoint.config
    model = Model(
        name="the model in training",
        engine=Engine(config, unstack(params), min(tokenizer.size, config.vocab), params.embed.dtype),
        tokenizer=tokenizer,
        chat_template=make_chat_template(checkpoint, tokenizer),
        defaults=Sampling(temperature=0.0),
        stop_ids=checkpoint.stop_ids or (tokenizer.eos_id,),
        tuned=bool(checkpoint.chat_templates),
    )
    room = max(1, min(MAX_TOKENS, config.max_length // 2))
    if not chat:
        return tuple(found.text for found in model.generate(list(prompts), max_tokens=room))
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return tuple(found.text for found in model.chat(messages, max_tokens=room))
