"""Measurements for Prometheus, under names of our own and those of vLLM, which dashboards know.

Source: vllm docs/design/metrics.md (names, labels and buckets).
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import Update

_REGISTRY = CollectorRegistry()
_FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)
_LENGTH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_MODEL = ("model_name", "engine")
_ENGINE = "0"

disable_created_metrics()


def _counter(name: str, text: str, labels: Iterable[str] = _MODEL) -> Counter:
    return Counter(f"gemwright_{name}", text, labels, registry=_REGISTRY)


def _histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
    return Histogram(f"gemwright_{name}", text, _MODEL, buckets=tuple(buckets), registry=_REGISTRY)


def _gauge(name: str, text: str) -> Gauge:
    return Gauge(f"gemwright_{name}", text, _MODEL, registry=_REGISTRY)


_RUNNING = _gauge("num_requests_running", "Number of texts being generated.")
_WAITING = _gauge("num_requests_waiting", "Number of texts that wait for a slot.")
_PROMPT_TOKENS = _counter("prompt_tokens_total", "Number of tokens of prompts.")
_TOKENS = _counter("generation_tokens_total", "Number of generated tokens.")
_QUERIES = _counter("prefix_cache_queries_total", "Number of tokens looked up in the prefix cache.")
_HITS = _counter("prefix_cache_hits_total", "Number of tokens found in the prefix cache.")
_FINISHED = _counter("request_success_total", "Number of complete texts.", (*_MODEL, "finished_reason"))
_CANCELLED = _counter("request_cancelled_total", "Number of texts that were cancelled or failed.")
_REFUSED = _counter(
    "shield_refusals_total", "Number of messages and texts that the shield refused.", (*_MODEL, "policy", "mode")
)
_FIRST_TOKEN = _histogram("time_to_first_token_seconds", "Time until the first token.", _FIRST_TOKEN_BUCKETS)
_BETWEEN = _histogram("inter_token_latency_seconds", "Time between tokens.", _TOKEN_BUCKETS)
_PER_TOKEN = _histogram(
    "request_time_per_output_token_seconds", "Mean time between the tokens of a text.", _TOKEN_BUCKETS
)
_LATENCY = _histogram("e2e_request_latency_seconds", "Time from a request to the end of its text.", _REQUEST_BUCKETS)
_QUEUED = _histogram("request_queue_time_seconds", "Time in the queue.", _REQUEST_BUCKETS)
_PREFILL = _histogram("request_prefill_time_seconds", "Time of prefill.", _REQUEST_BUCKETS)
_DECODE = _histogram("request_decode_time_seconds", "Time of decode.", _REQUEST_BUCKETS)
_PROMPT_LENGTH = _histogram("request_prompt_tokens", "Number of tokens of a prompt.", _LENGTH_BUCKETS)
_LENGTH = _histogram("request_generation_tokens", "Number of generated tokens of a text.", _LENGTH_BUCKETS)


@dataclass
class _Record:
    """A generation in progress."""

    model: str
    tokens: int = 0
    last: float = 0.0
    finish_reason: str | None = None


_records: dict[Generation, _Record] = {}


def begin(model: str, generation: Generation) -> None:
    """Record a new generation of a model."""
    _records[generation] = _Record(model)


def update(generation: Generation, part: Update) -> None:
    """Record an update of a generation that has begun."""
    record, now = _records.get(generation), time.monotonic()
    if record is None:
        return
    labels = (record.model, _ENGINE)
    if part.tokens and record.tokens:
        _BETWEEN.labels(*labels).observe((now - record.last) / len(part.tokens))
    elif part.tokens:
        _FIRST_TOKEN.labels(*labels).observe((generation.first or now) - generation.arrival)
    if part.tokens:
        record.tokens, record.last = record.tokens + len(part.tokens), now
        _TOKENS.labels(*labels).inc(len(part.tokens))
    record.finish_reason = part.finish_reason


def refuse(model: str, policy: str, mode: str) -> None:
    """Record that a shield refused a message ("input") or a text ("output") of a model."""
    _REFUSED.labels(model, _ENGINE, policy, mode).inc()


def end(generation: Generation) -> None:
    """Record that a generation has ended or was cancelled."""
    record, now = _records.pop(generation, None), time.monotonic()
    if record is None:
        return
    labels = (record.model, _ENGINE)
    if generation.started is not None:
        _PROMPT_TOKENS.labels(*labels).inc(generation.prompt_tokens)
        _QUERIES.labels(*labels).inc(generation.prompt_tokens)
        _HITS.labels(*labels).inc(generation.cached_tokens)
    if record.finish_reason is None:
        _CANCELLED.labels(*labels).inc()
        return
    _FINISHED.labels(*labels, record.finish_reason).inc()
    _PROMPT_LENGTH.labels(*labels).observe(generation.prompt_tokens)
    _LENGTH.labels(*labels).observe(record.tokens)
    ended = generation.finished or now
    started = generation.started or ended
    first = generation.first or ended
    _LATENCY.labels(*labels).observe(ended - generation.arrival)
    _QUEUED.labels(*labels).observe(started - generation.arrival)
    _PREFILL.labels(*labels).observe(first - started)
    _DECODE.labels(*labels).observe(ended - first)
    if record.tokens > 1:
        _PER_TOKEN.labels(*labels).observe((ended - first) / (record.tokens - 1))


def render(models: Iterable[str]) -> bytes:
    """Return all measurements in Prometheus' text format, each with the prefix `gemwright_` and with `vllm:`.

    Args:
        models: Names of the models, whose gauges are reported even if they are idle.
    """
    for model in models:
        started = [each.started is not None for each, record in _records.items() if record.model == model]
        _RUNNING.labels(model, _ENGINE).set(sum(started))
        _WAITING.labels(model, _ENGINE).set(len(started) - sum(started))
    text = generate_latest(_REGISTRY)
    return text + re.sub(rb"^((?:# (?:HELP|TYPE) )?)gemwright_", rb"\1vllm:", text, flags=re.MULTILINE)
