"""Screen requests and their texts by a shield, on a thread of its own, which alone uses the shield's weights."""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from gemwright.errors import RequestError
from gemwright.serve import metrics
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.queue import RETRY_SECONDS
from gemwright.serve.batching.request import Update
from gemwright.shield.classifier import Shield, Violation
from gemwright.shield.screen import Sentences

CODE = "content_filter"
"""The reason for the end of a refused text and the code of a refused request, as OpenAI and Azure name them."""
MAX_WAITING = 256
"""Maximum number of messages that wait to be judged."""
REMEMBERED = 4096
"""Number of judged messages that are remembered, by their digests, so that a conversation is not judged again."""
_LOG = logging.getLogger("gemwright.serve")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class ServedShield:
    """A shield before the models of a server.

    Args:
        shield: The shield.
    """

    def __init__(self, shield: Shield):
        self._shield = shield
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gemwright-shield")
        self._judged: OrderedDict[bytes, Violation | None] = OrderedDict()
        self._waiting = 0

    async def check(self, model: str, texts: Sequence[str]) -> None:
        """Judge the messages of a request to a model.

        Raises:
            RequestError: One of them is refused (400), or too many wait (429).
        """
        for text in dict.fromkeys(texts):
            violation = await self._judge(text)
            if violation is not None:
                _report(model, violation)
                raise RequestError(violation.sentence, code=CODE)

    async def screen(self, model: str, generation: Generation) -> AsyncGenerator[Update, None]:
        """Yield the updates of a generation when they have been judged, each with the sentences before it.

        A refused text ends with what was yielded before, for the reason `CODE`, and its generation is cancelled.
        """
        text, sentences, held = generation.request.texts[-1], Sentences(), list[Update]()
        async for update in generation:
            held.append(update)
            if not (sentences.push(update.text) or update.finish_reason):
                continue
            violation = await self._run(self._shield.find_violation, text, sentences.text)
            if violation is not None:
                _report(model, violation)
                generation.cancel()
                yield Update("", finish_reason=CODE)
                return
            for judged in held:
                yield judged
            held.clear()

    async def _judge(self, text: str) -> Violation | None:
        """Return why a message is refused, from memory if it was judged before."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if digest not in self._judged:
            if self._waiting >= MAX_WAITING:
                raise RequestError(
                    f"{self._waiting} messages wait to be judged; try again later.",
                    status=429,
                    code="queue_full",
                    retry_after=RETRY_SECONDS,
                )
            self._waiting += 1
            try:
                self._judged[digest] = await self._run(self._shield.find_violation, text)
            finally:
                self._waiting -= 1
        self._judged.move_to_end(digest)
        while len(self._judged) > REMEMBERED:
            self._judged.popitem(last=False)
        return self._judged[digest]

    async def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.wrap_future(self._thread.submit(function, *args, **kwargs))


def _report(model: str, violation: Violation) -> None:
    """Log and count a refusal, without the text."""
    _LOG.warning("Shield of %s, %s: %s", model, violation.mode, violation.sentence)
    metrics.refuse(model, violation.policy, violation.mode)
