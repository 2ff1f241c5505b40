"""Draw the screenshots of docs/images: python docs/screenshots.py. Needs the extra `dev`.

A terminal screenshot is a real session with the packaged Gemma 3 270M, run in a pseudo-terminal. The scene is painted
here, and its boxes and masks are those of the painted objects, in the notation of PaliGemma's answers.
"""

import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path

import matplotlib
import numpy as np
import pyte
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gemwright.images.drawing import draw, save_png
from gemwright.images.locations import parse

IMAGES = Path(__file__).parent / "images"
COLUMNS, LINES = 96, 40
MARGIN, BAR, FONT_SIZE = 24, 44, 22
"""In pixels: around the text, height of the title bar, and of the letters."""
BACKGROUND, FOREGROUND, FAINT = (24, 26, 32), (222, 224, 230), (138, 142, 154)
COLORS = {"cyan": (86, 196, 214), "green": (126, 204, 120), "red": (236, 110, 110), "brown": (222, 184, 92)}
CHAT = ["Tell me a short story about a lighthouse.", "/help"]
SECONDS_QUIET = 0.5
"""Seconds without output after which a program waits for input."""

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def run_in_terminal(command: Sequence[str], inputs: Sequence[str] = ()) -> pyte.Screen:
    """Run a program in a terminal, type each input when it waits, and return the screen at the end."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(command[0], list(command), os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)})
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    waiting, last, begun = list(inputs), time.monotonic(), False
    while True:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                data = os.read(terminal, 1 << 16)
            except OSError:  # the program has ended
                break
            stream.feed(data)
            begun, last = begun or b">" in data, time.monotonic()
        elif begun and screen.display[screen.cursor.y].strip() == ">" and time.monotonic() - last > SECONDS_QUIET:
            if not waiting:
                break
            os.write(terminal, f"{waiting.pop(0)}\n".encode())
            last = time.monotonic()
    os.close(terminal)
    os.waitpid(process, 0)
    return screen


def paint(screen: pyte.Screen, title: str, path: Path) -> None:
    """Paint a terminal's screen, without the empty lines at its end."""
    fonts = {
        bold: ImageFont.truetype(FONTS / f"DejaVuSansMono{'-Bold' * bold}.ttf", FONT_SIZE) for bold in (False, True)
    }
    width, height = round(fonts[False].getlength("M")), round(FONT_SIZE * 1.35)
    rows = [row for row in range(screen.lines) if any(cell.data.strip() for cell in screen.buffer[row].values())]
    count = max(rows, default=0) + 1
    image = Image.new("RGB", (2 * MARGIN + COLUMNS * width, BAR + MARGIN + count * height + MARGIN // 2), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for index, color in enumerate(((236, 106, 94), (244, 191, 79), (97, 197, 84))):
        canvas.ellipse((MARGIN + 26 * index, 16, MARGIN + 26 * index + 14, 30), fill=color)
    canvas.text((image.width / 2, BAR / 2), title, FAINT, fonts[False], anchor="mm")
    for row in range(count):
        for column, cell in screen.buffer[row].items():
            color = COLORS.get(cell.fg, FOREGROUND)
            canvas.text((MARGIN + column * width, BAR + row * height), cell.data, color, fonts[cell.bold])
    image.save(path)


def paint_scene(side: int = 640) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]], str]:
    """Return a painted image, the mask of each object, and the answer that would locate them."""
    image = Image.new("RGB", (side, side * 3 // 4), (198, 214, 226))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, side * 0.52, side, side), fill=(176, 142, 108))
    shapes = {
        "ball": lambda pen, color: pen.ellipse((90, 210, 270, 390), fill=color),
        "mug": lambda pen, color: (
            pen.rounded_rectangle((360, 200, 500, 400), 22, fill=color),
            pen.arc((440, 240, 550, 350), -90, 90, fill=color, width=22),
        ),
    }
    masks: list[NDArray[np.bool_]] = []
    answers: list[str] = []
    for (name, shape), color in zip(shapes.items(), ((204, 78, 66), (66, 108, 176)), strict=True):
        shape(canvas, color)
        mask = Image.new("1", image.size)
        shape(ImageDraw.Draw(mask), 1)
        masks.append(np.asarray(mask, bool))
        left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
        corners = (top / image.height, left / image.width, bottom / image.height, right / image.width)
        answers.append("".join(f"<loc{min(round(1024 * value), 1023):04}>" for value in corners) + f" {name}")
    return np.asarray(image), masks, " ; ".join(answers)


def main() -> None:
    """Draw all screenshots."""
    IMAGES.mkdir(exist_ok=True)
    program = str(Path(sys.executable).with_name("gemwright"))
    options = ["--seed", "7", "--max-tokens", "70"]
    screen = run_in_terminal([program, "generate", *options, "Once upon a time"])
    paint(screen, "gemwright generate", IMAGES / "generate.png")
    command = [program, "chat", "--seed", "2", "--temperature", "0.7", "--max-tokens", "60"]
    screen = run_in_terminal(command, CHAT)
    paint(screen, "gemwright chat", IMAGES / "chat.png")
    image, masks, answer = paint_scene()
    save_png(draw(image, parse(answer), masks), IMAGES / "boxes.png")


if __name__ == "__main__":
    main()
