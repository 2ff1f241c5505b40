"""The models of a server, by name: loaded when they are first asked for, unloaded when memory or time runs out."""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from gemwright.api import Model
from gemwright.errors import GemwrightError, RequestError
from gemwright.runtime import heap
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import GenerationRequest
from gemwright.serve.batching.scheduler import Scheduler
from gemwright.serve.screening import ServedShield

_P = ParamSpec("_P")
_T = TypeVar("_T")
RETRY_SECONDS = 10
"""Time after which a client may try again while models that are in use fill the memory."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model and its scheduler.

    Attributes:
        name: The name by which requests select it.
        model: The model: its tokenizer, chat template, default sampling and stop ids.
        scheduler: What runs its requests.
        aliases: Other names.
        created: When it was loaded, in seconds since 1970.
        shield: What screens its requests and their texts.
    """

    name: str
    model: Model
    scheduler: Scheduler
    aliases: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    shield: ServedShield | None = None

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt together with its continuation."""
        return self.scheduler.context

    def generate(self, request: GenerationRequest) -> Generation:
        """Queue a request; call it on the event loop.

        Raises:
            RequestError: The prompt is empty or does not fit in the context, a token is unknown, the queue is full, or
                the model is being unloaded.
        """
        return self.scheduler.submit(request)

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run what takes long, such as encoding an image or a long text, in a thread."""
        return await asyncio.to_thread(function, *args, **kwargs)


@dataclass(eq=False)
class ModelSource:
    """A model that a server offers.

    Attributes:
        name: The name by which requests select it.
        start: Loads it and starts its scheduler.
        aliases: Other names.
        served: The model while it is loaded.
        keep_seconds: Time without requests after which it is unloaded; None for never.
        used: When it was last asked for, by `time.monotonic`.
    """

    name: str
    start: Callable[[], ServedModel]
    aliases: tuple[str, ...] = ()
    served: ServedModel | None = None
    keep_seconds: float | None = None
    used: float = field(default_factory=time.monotonic)

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and runs nothing."""
        return self.served is not None and not (self.served.scheduler.running or self.served.scheduler.waiting)


class ModelRegistry:
    """The models that a server offers.

    Args:
        sources: All models, the default one first.
    """

    def __init__(self, sources: Sequence[ModelSource]):
        self.sources = list(sources)
        self._lock = asyncio.Lock()

    @property
    def models(self) -> list[ServedModel]:
        """The loaded models, the default one first."""
        return [source.served for source in self.sources if source.served is not None]

    def find(self, name: str | None = None) -> ModelSource:
        """Return a model, loaded or not, by its name or an alias; the first one without a name.

        Raises:
            RequestError: There is no such model (404).
        """
        for source in self.sources:
            if not name or name == source.name or name in source.aliases:
                return source
        known = ", ".join(source.name for source in self.sources)
        raise RequestError(
            f"The model {name!r:.200} does not exist; this server has {known}.",
            status=404,
            code="model_not_found",
            param="model",
        )

    async def get(self, name: str | None = None) -> ServedModel:
        """Return a model by its name or an alias, the first one without a name; it is loaded if it is not.

        Raises:
            RequestError: There is no such model (404), or it cannot be loaded now (503).
        """
        source = self.find(name)
        source.used = time.monotonic()
        if source.served is None:
            async with self._lock:
                if source.served is None:
                    await self._load(source)
        assert source.served is not None
        return source.served

    async def unload(self, source: ModelSource) -> None:
        """Free the memory of a model; requests in progress end with an error."""
        served, source.served = source.served, None
        if served is not None:
            await asyncio.to_thread(served.scheduler.stop)
            del served
            gc.collect()
            heap.trim()

    async def unload_expired(self) -> None:
        """Unload the models that had no request for longer than they are kept."""
        now = time.monotonic()
        for source in self.sources:
            if source.is_idle and source.keep_seconds is not None and now - source.used > source.keep_seconds:
                await self.unload(source)

    async def _load(self, source: ModelSource) -> None:
        """Load a model; if memory does not suffice, unload idle ones, that which was not used for longest first."""
        while source.served is None:
            try:
                source.served = await asyncio.to_thread(source.start)
            except GemwrightError as error:
                idle = [other for other in self.sources if other.is_idle]
                if not idle:
                    raise RequestError(
                        f"{source.name} cannot be loaded: {error}",
                        status=503,
                        code="model_not_loaded",
                        param="model",
                        retry_after=RETRY_SECONDS,
                    ) from error
                await self.unload(min(idle, key=lambda other: other.used))
