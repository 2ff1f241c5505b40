"""A server with a scripted scheduler as a process: its models take `LOAD` seconds to load, and each token `PAUSE`."""

import sys
import time

import gemwright
from gemwright.errors import GemwrightError
from gemwright.serve.models import ModelRegistry, ModelSource, ServedModel
from gemwright.serve.server import Server, open_port
from gemwright.serve.settings import Settings
from tests.serve.scripted import ScriptedScheduler

PAUSE = 0.1


def main(path: str, load_seconds: str, shutdown_seconds: str) -> None:
    def load() -> ModelRegistry:
        if not path:
            raise GemwrightError("There is no model.")
        time.sleep(float(load_seconds))
        model = gemwright.load(path)
        scheduler = ScriptedScheduler(model, lambda request: [300] * request.max_tokens, pause=PAUSE)
        served = ServedModel("tiny", model, scheduler)
        return ModelRegistry([ModelSource("tiny", lambda: served, (), served)])

    listener = open_port("127.0.0.1", 0)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    Server(Settings(), load, float(shutdown_seconds)).run_until_signal(listener)
    sys.stdout.write("ended\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
