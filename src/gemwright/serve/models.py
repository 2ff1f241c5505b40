"""The models of a server, by name."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from gemwright.api import Model
from gemwright.errors import RequestError
from gemwright.serve.generation import Generation
from gemwright.serve.request import GenerationRequest
from gemwright.serve.scheduler import Scheduler

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model and its scheduler.

    Attributes:
        name: The name by which requests select it.
        model: The model: its tokenizer, chat template, default sampling and stop ids.
        scheduler: What runs its requests.
        aliases: Other names.
        created: When it was loaded, in seconds since 1970.
    """

    name: str
    model: Model
    scheduler: Scheduler
    aliases: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt together with its continuation."""
        return self.scheduler.context

    def generate(self, request: GenerationRequest) -> Generation:
        """Queue a request; call it on the event loop.

        Raises:
            RequestError: The prompt is empty or does not fit in the context, a token is unknown, the queue is full, or
                the server is shutting down.
        """
        return self.scheduler.submit(request)

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run what takes long, such as encoding an image or a long text, in a thread."""
        return await asyncio.to_thread(function, *args, **kwargs)


class ModelRegistry:
    """The models that a server offers."""

    def __init__(self, models: Sequence[ServedModel]):
        self._models = {name: model for model in models for name in (model.name, *model.aliases)}
        self._first = models[0]

    @property
    def models(self) -> list[ServedModel]:
        """All models, the default one first."""
        return list(dict.fromkeys(self._models.values()))

    async def get(self, name: str | None = None) -> ServedModel:
        """Return a model by its name or an alias, the first one without a name.

        Raises:
            RequestError: There is no such model (404), or it is being loaded (503).
        """
        if not name:
            return self._first
        if name not in self._models:
            known = ", ".join(model.name for model in self.models)
            raise RequestError(
                f"The model {name!r} does not exist; this server has {known}.",
                status=404,
                code="model_not_found",
                param="model",
            )
        return self._models[name]
