"""The example in examples/release is what a release is, less the files that it leaves out."""

from gemwright.release.publishing.checks import check_release
from tests.documents import ROOT

FOLDER = ROOT / "examples" / "release" / "gemma-3-270m-gsm8k"
LEFT_OUT = ("GEMMA_TERMS_OF_USE.txt", "adapter_model.safetensors", "tokenizer.json")


def test_example():
    assert sorted(check_release(FOLDER)) == sorted(
        [
            "the license file GEMMA_TERMS_OF_USE.txt, a copy of https://ai.google.dev/gemma/terms, is missing",
            *(f"{name} is missing, although SHA256SUMS lists it" for name in LEFT_OUT),
        ]
    )
