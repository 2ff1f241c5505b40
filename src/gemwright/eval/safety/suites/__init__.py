"""The table of suites, by area."""

from collections.abc import Mapping

from gemwright.eval.safety.suite import Suite
from gemwright.eval.safety.suites import bias, conduct, facts, privacy, requests, toxicity

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        *toxicity.SUITES, *bias.SUITES, *requests.SUITES, *conduct.SUITES, *facts.SUITES, *privacy.SUITES
    )
}  # fmt: skip
"""All suites by name."""
