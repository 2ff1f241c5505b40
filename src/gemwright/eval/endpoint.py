"""Ask a model behind the chat API of OpenAI, several requests at a time, with retries."""

import asyncio
import ipaddress
import json
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from gemwright.errors import GemwrightError

CONCURRENCY = 8
"""Maximum number of requests at a time."""
ATTEMPTS = 6
"""Number of times that a request is sent before it fails."""
FIRST_WAIT_SECONDS = 0.5
"""Time before the second attempt; it doubles with each, and a random half of it is waited."""
MAX_WAIT_SECONDS = 60.0
"""Maximum time between two attempts, also if the server asks for more."""
TIMEOUT_SECONDS = 600.0
"""Time for one reply."""
KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable with the key, unless another is named."""
_RETRIED = (408, 409, 425, 429)
T = TypeVar("T")


class Reply(NamedTuple):
    """A reply of a model: its text, and whether it was cut at the maximum number of tokens."""

    text: str
    cut: bool


@dataclass(frozen=True)
class Endpoint:
    """A model behind an API.

    Attributes:
        url: Address of the API, such as `https://host/v1`.
        model: Its name there.
        key_variable: Environment variable with the API key.
    """

    url: str
    model: str
    key_variable: str = KEY_VARIABLE


def parse_endpoint(text: str, key_variable: str = KEY_VARIABLE) -> Endpoint:
    """Return the endpoint of an address with the name of a model, such as `http://127.0.0.1:8000/v1#gemma`.

    Raises:
        GemwrightError: The address is not complete, or has a password, which would be stored with the results.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.fragment:
        raise GemwrightError(f"{text!r:.200} is no endpoint; write it as http://HOST:PORT/v1#MODEL.")
    if "@" in parts.netloc:
        raise GemwrightError("The address has a user name; put the key into an environment variable instead.")
    return Endpoint(parts._replace(fragment="").geturl().rstrip("/"), parts.fragment, key_variable)


class Client:
    """Asks an endpoint, at most `CONCURRENCY` requests at a time."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self._length_field = "max_tokens"
        self._turn = asyncio.Semaphore(CONCURRENCY)
        self._http = httpx.AsyncClient(headers=authorization(endpoint), timeout=TIMEOUT_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def chat(self, messages: Sequence[Mapping[str, str]], max_tokens: int, **fields: Any) -> Reply:
        """Return the reply to a conversation.

        Args:
            messages: Messages with `role` and `content`.
            max_tokens: Maximum number of tokens of the reply.
            **fields: Other fields of the request, such as `temperature`.

        Raises:
            GemwrightError: The server refuses the request, does not answer, or its reply is of another form.
        """
        async with self._turn:
            body = {"model": self.endpoint.model, "messages": messages, self._length_field: max_tokens, **fields}
            try:
                return _parse(await self._send(body), self.endpoint)
            except _OtherFieldError:  # newer models of OpenAI take the limit by another name only
                self._length_field = "max_completion_tokens"
                del body["max_tokens"]
                return _parse(await self._send(body | {self._length_field: max_tokens}), self.endpoint)

    async def _send(self, body: Mapping[str, Any]) -> httpx.Response:
        problem, wait = "", FIRST_WAIT_SECONDS
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, MAX_WAIT_SECONDS)
            try:
                response = await self._http.post(f"{self.endpoint.url}/chat/completions", json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
                continue
            if response.is_success:
                return response
            problem = f"status {response.status_code}: {_message(response)}"
            if response.status_code == 400 and "max_tokens" in body and "max_completion_tokens" in problem:
                raise _OtherFieldError
            if response.status_code < 500 and response.status_code not in _RETRIED:
                raise _error(self.endpoint, problem, "check the address, the name of the model and the key")
            wait = max(wait, _asked_wait(response))
        raise _error(self.endpoint, problem, "run the command again when it answers; what was done is kept")


def run_all(endpoint: Endpoint, jobs: Iterable[Callable[[Client], Awaitable[T]]], keep: Callable[[T], None]) -> None:
    """Run jobs with a client of an endpoint, and pass the result of each to `keep` as it comes.

    Raises:
        GemwrightError: A job failed; those that run then are given up.
    """

    async def run() -> None:
        async with Client(endpoint) as client:
            tasks = [asyncio.ensure_future(job(client)) for job in jobs]
            try:
                for task in asyncio.as_completed(tasks):
                    keep(await task)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


class _OtherFieldError(Exception):
    """The server takes the maximum number of tokens by another name."""


def authorization(endpoint: Endpoint) -> dict[str, str]:
    """Return the header with the key; a key is never sent in the clear over a network.

    Raises:
        GemwrightError: It would be, although its variable was named.
    """
    key, parts = os.environ.get(endpoint.key_variable, "").strip(), urlsplit(endpoint.url)
    is_named = endpoint.key_variable != KEY_VARIABLE
    if is_named and not key:
        raise GemwrightError(f"The environment variable {endpoint.key_variable} has no key; set it.")
    if parts.scheme == "https" or _is_loopback(parts.hostname or ""):
        return {"Authorization": f"Bearer {key}"} if key else {}
    if is_named:
        raise GemwrightError(f"The key would be sent to {endpoint.url} in the clear; use https.")
    return {}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _asked_wait(response: httpx.Response) -> float:
    """Return the seconds that a server asks to wait."""
    try:
        return min(float(response.headers.get("retry-after", "0")), MAX_WAIT_SECONDS)
    except ValueError:  # a date
        return 0.0


def _message(response: httpx.Response) -> str:
    """Return what a server says about an error."""
    try:
        return str(response.json()["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return response.reason_phrase


def _parse(response: httpx.Response, endpoint: Endpoint) -> Reply:
    try:
        choice = json.loads(response.content)["choices"][0]
        text = choice["message"]["content"] or ""
        if isinstance(text, str):
            # JSON can have half of a surrogate pair, which no file can.
            clean = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
            return Reply(clean.strip(), choice.get("finish_reason") == "length")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        pass
    raise _error(
        endpoint, "its reply is not a chat completion", "check that the address ends as the API's does, in /v1"
    )


def _error(endpoint: Endpoint, problem: str, remedy: str) -> GemwrightError:
    return GemwrightError(f"{endpoint.model} at {endpoint.url}: {problem:.400}; {remedy}.")
