from collections.abc import Iterator

import pytest

import gemwright_native as native


@pytest.fixture(params=native.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test once for each instruction set of this machine."""
    before = native.isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)
