"""Hold a conversation: each line of standard input is a message.

python examples/chat.py --model gemma-3-1b-it
"""

import argparse
import sys

import gemwright
from gemwright import Message


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Chat with a model.")
    parser.add_argument("--model", default="gemma-3-1b-it", help="path, name or hub id")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--max-tokens", type=int, default=512)
    options = parser.parse_args()

    model = gemwright.load(options.model)
    messages = [Message("system", options.system)] if options.system else []
    for line in sys.stdin:
        messages.append(Message("user", line.strip()))
        reply = model.chat(messages, max_tokens=options.max_tokens)
        messages.append(Message("assistant", reply.text))
        sys.stdout.write(f"{reply.text}\n")


if __name__ == "__main__":
    main()
