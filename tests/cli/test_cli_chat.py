import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gemwright import Message
from gemwright.text.chat import GEMMA
from tests.tiny.gguf import write_tiny_gguf

GREEDY = {"temperature": 0.0, "max_tokens": 8}
OPTIONS = ("--temperature", 0, "--max-tokens", 8)


def answers(model, *lines: str, system: str | None = None) -> list[str]:
    """Return the model's reply to each line, with the lines and replies before it as history."""
    talk = [Message("system", system)] if system else []
    for line in lines:
        talk.append(Message("user", line))
        talk.append(Message("assistant", model.chat(talk, **GREEDY).text))
    return [message.content for message in talk if message.role == "assistant"]


def test_piped_lines_are_messages(run, tiny, tiny_model):
    result = run("chat", "-m", tiny, *OPTIONS, stdin=b"hello\n\n/reset\nthe end")
    expected = answers(tiny_model, "hello", "/reset", "the end")
    assert (result.code, result.err) == (0, "")
    assert result.out == "".join(f"{reply}\n" for reply in expected)
    assert expected[2] != answers(tiny_model, "the end")[0]  # so the history counted


def test_json_and_system(run, tiny, tiny_model):
    result = run("chat", "-m", tiny, *OPTIONS, "--system", "be good", "--json", stdin=b"hello\nhen\n")
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [record["message"] for record in records] == ["hello", "hen"]
    assert [record["text"] for record in records] == answers(tiny_model, "hello", "hen", system="be good")
    assert records[1]["prompt_tokens"] > records[0]["prompt_tokens"] + records[0]["completion_tokens"]


def test_pretrained_model_warns_once(run, tmp_path: Path):
    result = run("chat", "-m", write_tiny_gguf(tmp_path / "pretrained.gguf"), *OPTIONS, stdin=b"a\nb\n")
    assert result.code == 0
    assert result.err.count("is a base model, not a chat model; use one whose name ends in -it.\n") == 1
    assert result.err.count("\n") == 1


def test_nothing_to_answer(run, tiny):
    assert run("chat", "-m", tiny) == type(run("chat", "-m", tiny))(0, "", "")


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


class Terminal:
    """A process on a terminal; `raw` is its output and `text` that without escape sequences."""

    def __init__(self, spawn, *arguments: object, **env: str):
        self.ours, theirs = pty.openpty()
        env = {"TERM": "xterm", "COLUMNS": "200"} | env
        self.process: subprocess.Popen[bytes] = spawn(*arguments, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.raw, self.read = "", 0

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, pattern: str, seconds: float = 60) -> str:
        """Read up to the end of the next match of a pattern and return that text."""
        end = time.monotonic() + seconds
        while not (match := re.compile(pattern, re.DOTALL).search(self.text, self.read)):
            ready, _, _ = select.select([self.ours], [], [], max(0, end - time.monotonic()))
            assert ready, f"expected {pattern!r}, but found {self.text[self.read :]!r}"
            self.raw += os.read(self.ours, 4096).decode(errors="replace")
        start, self.read = self.read, match.end()
        return self.text[start : self.read]

    def interrupt_until(self, pattern: str) -> None:
        """Send SIGINT until the pattern appears: readline misses one that arrives just before it waits."""
        for attempt in range(30):
            self.process.send_signal(signal.SIGINT)
            try:
                self.until(pattern, seconds=1)
            except AssertionError:
                assert attempt < 29
            else:
                return


@pytest.fixture
def terminal(spawn):
    opened: list[Terminal] = []

    def open_one(*arguments: object, **env: str) -> Terminal:
        opened.append(Terminal(spawn, *arguments, **env))
        return opened[-1]

    yield open_one
    for one in opened:
        os.close(one.ours)


PROMPT = r"\n> "


def test_interrupt_stops_the_reply_and_not_the_program(terminal, tmp_path: Path):
    model = write_tiny_gguf(tmp_path / "long.gguf", max_length=131_072, chat_template=GEMMA.template)
    talk = terminal("chat", "-m", model, "--temperature", 0, "--max-tokens", 100_000, "--verbose")
    assert "Type /help for commands" in talk.until(PROMPT)
    talk.type("hello\n")
    talk.until(r"hello\n\n\w{5}")
    talk.process.send_signal(signal.SIGINT)
    assert "Stopped." in talk.until(PROMPT)

    talk.interrupt_until(r"Press Ctrl-D or type /exit to exit\..*" + PROMPT)

    talk.type("again\n")  # answered, and the earlier messages are still in the conversation
    talk.until(r"again\n\n\w{5}")
    talk.process.send_signal(signal.SIGINT)
    assert "Traceback" not in talk.until(r"Stopped\..*" + PROMPT)
    talk.type("\x04")
    assert talk.process.wait(60) == 0


def test_conversation_at_a_terminal(terminal, tmp_path: Path):
    model = write_tiny_gguf(tmp_path / "short.gguf", max_length=128)
    talk = terminal("chat", "-m", model, *OPTIONS, "--verbose", NO_COLOR="1")
    started = talk.until(PROMPT)
    assert "is a base model" in started
    assert started.startswith("Loading short.gguf ...")

    talk.type("hen\n")
    printed = talk.until(PROMPT)
    first = int(re.search(r"prompt +(\d+) tokens", printed)[1])
    assert "Stopped after 8 tokens" in printed
    talk.type("hen\n")
    second = int(re.search(r"prompt +(\d+) tokens", talk.until(PROMPT))[1])
    assert second > first + 8  # the first message, its reply and the second message

    talk.type("/reset\n")
    assert "Started a new conversation." in talk.until(PROMPT)
    talk.type("hen\n")
    assert int(re.search(r"prompt +(\d+) tokens", talk.until(PROMPT))[1]) == first

    talk.type("ab" * 60 + "\n")
    assert "the model's context is 128; type /reset to start a new one." in talk.until(PROMPT)

    talk.type("/reset\n")
    talk.until(PROMPT)
    talk.type("x" * (126 - first) + "\n")  # "hen" is two tokens, so that four more fit
    assert "The context is full; type /reset to start a new conversation." in talk.until(PROMPT)

    talk.type("/system be good\n")
    assert "Started a new conversation with a system prompt." in talk.until(PROMPT)
    talk.type("hen\n")
    assert int(re.search(r"prompt +(\d+) tokens", talk.until(PROMPT))[1]) > first
    talk.type("/help\n")
    assert "/system TEXT" in talk.until(PROMPT)
    talk.type("/nonsense\n")
    assert "Unknown command /nonsense; type /help for a list." in talk.until(PROMPT)
    talk.type("/rest\n")
    assert "Unknown command /rest; did you mean /reset?" in talk.until(PROMPT)
    talk.type(f"/save {tmp_path / 'talk.json'}\n")
    assert "Saved 2 messages" in talk.until(PROMPT)
    talk.type(f"/save {model}\n")
    assert "exists; choose another name." in talk.until(PROMPT)
    talk.type("/reset\n")
    talk.until(PROMPT)
    talk.type(f"/load {tmp_path / 'talk.json'}\n")
    assert "Continuing a conversation of 2 messages." in talk.until(PROMPT)

    talk.type("/system\n")
    talk.until(PROMPT)
    talk.type("\x1b[200~/usr/bin\nis a\nfolder\x1b[201~\n")  # a bracketed paste is one message
    assert talk.until(PROMPT).count("Stopped after 8 tokens") == 1
    talk.type(f"/save {tmp_path / 'paste.json'}\n")
    assert "Saved 2 messages" in talk.until(PROMPT)
    saved = json.loads((tmp_path / "paste.json").read_text())["messages"]
    assert saved[0] == {"role": "user", "content": "/usr/bin\nis a\nfolder"}
    talk.type("quit\n")
    assert talk.process.wait(60) == 0


def test_terminal_shows_the_prompt_and_no_control_characters(terminal, tiny):
    window = terminal("generate", "a\x1b[31mb", "-m", tiny, "--max-tokens", 2, "--temperature", 0)
    window.until("a\ufffd\\[31mb\\S+\n")
    assert "\x1b[2ma\ufffd[31mb\x1b[0m" in window.raw  # the prompt, dim
    assert window.process.wait(60) == 0
