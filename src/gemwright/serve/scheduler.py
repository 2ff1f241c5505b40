"""Continuous batching: one thread prefills waiting prompts and decodes all running sequences together."""

from gemwright.serve.generation import Generation
from gemwright.serve.request import GenerationRequest


class Scheduler:
    """Runs the requests of one model on a thread of its own (interface; being written)."""

    context: int

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request; call it on the event loop."""
        raise NotImplementedError
