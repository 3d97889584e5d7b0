"""Which cases of a test are in the first tier."""

import pytest


def mostly_slow(cases, *, but):
    """Parameters, all slow but these."""
    cases = list(cases)
    assert set(but) <= set(cases)
    return [
        case if case in but else pytest.param(case, marks=pytest.mark.slow)
        for case in cases
    ]
