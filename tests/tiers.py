"""Which cases of a test are in the first tier."""

import pytest


def mostly_slow(cases, *, but, several=False):
    """Parameters, all slow but these, or but so many of the first.

    With `several`, each case is a tuple of as many parameters.
    """
    cases = list(cases)
    fast = cases[:but] if isinstance(but, int) else list(but)
    assert all(case in cases for case in fast)
    return [
        case
        if case in fast
        else pytest.param(*(case if several else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
