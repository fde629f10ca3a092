"""The contract runs for every potential of tests/potentials.py."""

import potentials
import pytest


@pytest.fixture(params=potentials.NAMES)
def case(request) -> potentials.Case:
    """The test runs for every listed potential."""
    return potentials.cases()[request.param]
