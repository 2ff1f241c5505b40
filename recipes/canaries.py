"""Tune a model on random sentences that are repeated 1 to 64 times, and measure which of them it has memorized.

python recipes/canaries.py --out canaries

The sentences, called canaries, are in no other data, so what the model knows of them it has from the repetitions. Some
more are not trained on, as a control.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import measure

import gemwright
from gemwright.eval.memorization import Finding, Settings, audit
from gemwright.text.tokenizer import Tokenizer
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train

REPETITIONS = (0, 1, 2, 4, 8, 16, 32, 64)
CANARIES = 4
SETTINGS = Settings()
RECIPE = Recipe(learning_rate=1e-3, length=128, batch_size=4)
SEED = 0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the memorization of repeated canaries.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="gemma-3-270m", help="path, name or hub id")
    parser.add_argument("--canaries", type=int, default=CANARIES, help="number of canaries of each repetition")
    parser.add_argument("--method", choices=("lora", "full"), default="lora", help="what is trained")
    parser.add_argument("--learning-rate", type=float, default=RECIPE.learning_rate, help="highest learning rate")
    parser.add_argument("--batch-size", type=int, default=RECIPE.batch_size, help="number of sequences of a step")
    options = parser.parse_args()
    changes = {name: getattr(options, name) for name in ("method", "learning_rate", "batch_size")}
    run(options.model, options.out, options.canaries, Recipe(**RECIPE.document() | changes))


def run(model: str, out: Path, count: int, recipe: Recipe) -> list[Finding]:
    """Tune a model on canaries, and return the result of each number of repetitions."""
    tokenizer = gemwright.load(model).tokenizer
    training, corpus = write_canaries(tokenizer, out / "data", count)
    tuned = train(prepare(model, training, out / "run", recipe, chat=False, held_out=0.0), measure.report)
    findings = audit(gemwright.load(tuned), [corpus], out / "audit", SETTINGS)[:-1]
    print(f"\n{'repetitions':>12}{'canaries':>10}{'exact':>8}{'approximate':>13}")
    for one in findings:
        assert one.approximate is not None
        print(f"{one.source:>12}{one.exact.documents:>10}{one.exact.share:>8.0%}{one.approximate.share:>13.0%}")
    plot(findings, out / "canaries.png")
    return findings


def write_canaries(tokenizer: Tokenizer, folder: Path, count: int) -> tuple[Path, Path]:
    """Write the training data, and the canaries themselves with the number of their repetitions as source."""
    draw = random.Random(SEED)
    canaries = [(times, make_canary(tokenizer, draw)) for times in REPETITIONS for _ in range(count)]
    repeated = [{"text": text} for times, text in canaries for _ in range(times)]
    draw.shuffle(repeated)
    training = measure.write_records(folder / "train.jsonl", repeated)
    return training, measure.write_records(
        folder / "canaries.jsonl", [{"text": text, "source": str(times)} for times, text in canaries]
    )


def make_canary(tokenizer: Tokenizer, draw: random.Random) -> str:
    """Return random words, as many as have the tokens of a prefix and a continuation."""
    words: list[str] = []
    while len(tokenizer.encode(" ".join(words))) < SETTINGS.prefix + SETTINGS.continuation:
        syllables = (draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(1, 3)))
        words.append("".join(syllables))
    return " ".join(words)


def plot(findings: Sequence[Finding], path: Path) -> None:
    """Draw the shares of canaries that are memorized, with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    places = range(len(findings))
    for title, shift, color in (("exact", -0.08, "#4285f4"), ("approximate", 0.08, "#ea8600")):
        rates = [getattr(one, title) for one in findings]
        bars = [[rate.share - rate.low for rate in rates], [rate.high - rate.share for rate in rates]]
        shares = [rate.share for rate in rates]
        axes.errorbar([p + shift for p in places], shares, bars, label=title, color=color, marker="o", capsize=3)
    axes.set_xticks(list(places), [one.source for one in findings])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("repetitions in the training data")
    axes.set_ylabel("share of canaries memorized")
    axes.legend(loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
