"""Write a story: first an outline, then a chapter for each of its lines.

python examples/apps/story.py "a lighthouse keeper who finds a map" --chapters 3 --model gemma-3-4b-it | tee story.md

The text is printed as it is written. A base model, such as gemma-3-270m, continues the page; a model whose name ends in
-it is asked for the page and continues its own answer, so that it cannot leave the form.
"""

import argparse
import sys
from collections.abc import Iterator

import gemwright
from gemwright.api import Model
from gemwright.errors import GemwrightError

REQUEST = "Write a short story about {idea}. First give an outline with one line for each of {count} chapters."
MEMORY = 6000
"""Number of characters of the story so far that the model reads for the next chapter, besides the outline."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write a story: an outline, then its chapters.")
    parser.add_argument("idea", help="such as 'a lighthouse keeper who finds a map'")
    parser.add_argument("--model", default="gemma-3-4b-it", help="path, name or hub id")
    parser.add_argument("--chapters", type=int, default=3, metavar="N")
    parser.add_argument("--words", type=int, default=200, metavar="N", help="maximum length of a chapter, roughly")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not 1 <= options.chapters <= 50 or options.words < 1:
        parser.error("--chapters must be from 1 to 50, and --words at least 1.")
    try:
        model = gemwright.load(options.model)
        for piece in write(model, options.idea, options.chapters, options.words, options.seed):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except GemwrightError as error:
        parser.exit(2, f"{error}\n")


def write(model: Model, idea: str, count: int, words: int, seed: int) -> Iterator[str]:
    """Yield the pieces of a story's Markdown.

    Args:
        model: Any Gemma.
        idea: Subject of the story.
        count: Number of chapters.
        words: Maximum length of a chapter, at 4 tokens for 3 words.
        seed: Seed of the outline; each chapter adds its number.
    """
    request = REQUEST.format(idea=idea, count=count)
    page = f"# A story about {idea}\n\n## Outline\n\n"
    yield page
    titles: list[str] = []
    while len(titles) < count:  # line by line, so that an outline has as many lines as chapters
        numbered = f"{len(titles) + 1}. "
        line = "".join(continue_page(model, request, page + numbered, seed + len(titles), 30, ["\n"])).strip(" *#\t")
        titles.append(line or "Untitled")
        page += f"{numbered}{titles[-1]}\n"
        yield f"{numbered}{titles[-1]}\n"
    story = ""
    for number, title in enumerate(titles, 1):
        heading = f"\n## {number}. {title}\n\n"
        story += heading
        yield heading
        start = page + story[-MEMORY:]
        pieces = continue_page(model, request, start, seed + count + number, max(words * 4 // 3, 1), ["\n#", "\n---"])
        for piece in pieces:
            story += piece
            yield piece
        story = story.rstrip() + "\n"
        yield "\n"


def continue_page(model: Model, request: str, page: str, seed: int, max_tokens: int, stop: list[str]) -> Iterator[str]:
    """Stream what follows a page that a model has begun to write.

    Args:
        model: A base model, which reads the page alone, or an instruction-tuned one, which reads the request first.
        request: What the page is to be.
        page: The page so far.
        seed: Seed of the random numbers.
        max_tokens: Maximum number of tokens.
        stop: Strings that end it.
    """
    page = page.rstrip(" ")  # a word's token begins with its space
    prompt = model.encode(page)
    if model.tuned:
        prompt = [*model.encode_chat([{"role": "user", "content": request}]), *prompt[1:]]  # without a second BOS
    return model.stream(prompt, seed=seed, max_tokens=max_tokens, stop=[*stop, "<end_of_turn>"], repetition_penalty=1.1)


if __name__ == "__main__":
    main()
