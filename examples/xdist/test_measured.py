"""Tests that measure something."""

import time

import pytest


@pytest.mark.parametrize("exponent", [3, 4, 5, 6])
def test_sum(exponent, measured):
    began = time.perf_counter()
    assert sum(range(10**exponent)) == 10**exponent * (10**exponent - 1) // 2
    measured.put({"exponent": exponent, "seconds": time.perf_counter() - began})
