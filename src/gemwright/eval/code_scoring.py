"""Functions that the definitions of code tasks name: from replies to programs, from programs to pass@k.

lm-eval calls `build_*` with all replies, and `score_*` with those to one problem. A score is the share of problems
whose tests pass when the program runs in the sandbox.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from gemwright.errors import GemwrightError
from gemwright.eval.code_languages import LANGUAGES, Language

Document = Mapping[str, Any]
"""A problem, with the fields of its data set."""
SAMPLES = (1, 2, 8, 10, 16, 32, 64, 100)
"""Values of k for which pass@k is reported, as far as a problem has as many programs."""


def estimate_pass_at_k(programs: int, passed: int, k: int) -> float:
    """Return the probability that at least one of k programs passes, without bias.

    1 - C(n - c, k) / C(n, k) for c of n programs that passed (Chen et al. 2021, arXiv:2107.03374, section 2.1).

    Raises:
        ValueError: There are fewer programs than k.
    """
    if not 0 <= passed <= programs or not 1 <= k <= programs:
        raise ValueError(f"pass@{k} of {passed} in {programs} programs is undefined.")
    return 1.0 - math.comb(programs - passed, k) / math.comb(programs, k)


def score(language: Language, document: Document, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Run the programs for one problem and return its pass@k, for lm-eval's `process_results`."""
    del document  # the programs contain its tests
    programs = results[0]
    passed = sum(language.run(program).status == "passed" for program in programs)
    ks = [k for k in SAMPLES if k <= len(programs)]
    return {f"pass@{k}": estimate_pass_at_k(len(programs), passed, k) for k in ks}


score_python = partial(score, LANGUAGES["python"])
score_cpp = partial(score, LANGUAGES["cpp"])
score_java = partial(score, LANGUAGES["java"])
score_javascript = partial(score, LANGUAGES["javascript"])


def require(language: Language, documents: Any) -> Any:
    """Return the documents if their programs can be run here, before any text is generated.

    Raises:
        GemwrightError: A tool or the sandbox is missing.
    """
    language.require()
    return documents


require_python = partial(require, LANGUAGES["python"])
require_cpp = partial(require, LANGUAGES["cpp"])
require_java = partial(require, LANGUAGES["java"])
require_javascript = partial(require, LANGUAGES["javascript"])


def build(
    make: Callable[[str, Document], str], replies: Iterable[Sequence[str]], documents: Iterable[Document]
) -> list[list[str]]:
    """Return the programs for each problem, for lm-eval's filters."""
    return [[make(reply, document) for reply in some] for some, document in zip(replies, documents, strict=True)]


def make_humaneval(reply: str, document: Document) -> str:
    """Continue the prompt, then check the function."""
    return f"{document['prompt']}{reply}\n{document['test']}\ncheck({document['entry_point']})"


def make_infilling(reply: str, document: Document) -> str:
    """Put a reply between prompt and suffix, then check the function."""
    suffix = str(document["suffix"])
    gap = "" if reply.endswith("\n") or suffix.startswith("\n") else "\n"
    return make_humaneval(f"{reply}{gap}{suffix}", document)


def make_mbpp(reply: str, document: Document) -> str:
    """Follow a reply by the tests."""
    setup = document.get("test_setup_code") or ""
    return "\n".join([reply, setup, *document["test_list"]])


def make_babelcode(reply: str, document: Document) -> str:
    """Continue the prompt, then run the tests."""
    return f"{document['prompt']}{reply}\n{document['testing_code']}"


def make_braces(closing: str, reply: str, document: Document) -> str:
    """Continue the prompt, close the function, at whose end the reply was cut, then add the tests."""
    return f"{document['prompt']}{reply}{closing}\n{document['test']}"


def make_test(reply: str, document: Document) -> str:
    """Continue the prompt, then run the test."""
    return f"{document['prompt']}{reply}\n{document['test']}"


build_humaneval = partial(build, make_humaneval)
build_infilling = partial(build, make_infilling)
build_mbpp = partial(build, make_mbpp)
build_babelcode = partial(build, make_babelcode)
build_test = partial(build, make_test)
build_function = partial(build, partial(make_braces, "\n}\n"))
build_method = partial(build, partial(make_braces, "\n    }\n}\n"))


def keep_mbpp_test(documents: Any) -> Any:
    """Return the test problems of MBPP, numbers 11 to 510."""
    LANGUAGES["python"].require()

    def is_test(document: Document) -> bool:
        return 11 <= int(document["task_id"]) <= 510

    return documents.filter(is_test)


def keep_mbpp_examples(documents: Any) -> list[dict[str, Any]]:
    """Return the three examples before each problem, numbers 2 to 4, as in the paper.

    Raises:
        GemwrightError: The data lack them.
    """
    found = [{**document, "is_fewshot": True} for document in documents if int(document["task_id"]) in (2, 3, 4)]
    if len(found) != 3:
        raise GemwrightError(
            "MBPP's examples, task_id 2 to 4, are missing from its data: use the whole file, mbpp.jsonl."
        )
    return found
