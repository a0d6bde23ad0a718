"""Latencies as far as a histogram tells them."""

import pytest

from tasks.counters import DELIVERY, Histogram, percentile


def of(counts: dict[int, int]) -> Histogram:
    return Histogram([counts.get(number, 0) for number in range(len(DELIVERY) + 1)], 0.0)


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ({}, 0.5, None),
        ({0: 10}, 0.5, 0.0025),  # halfway to the first bound
        ({0: 10}, 1.0, 0.005),
        ({3: 4}, 0.5, 0.0375),  # between 25 and 50 ms
        ({0: 50, 7: 50}, 0.5, 0.005),
        ({0: 90, 7: 10}, 0.95, 0.75),  # the middle of the slow ones: between 0.5 and 1 s
        ({len(DELIVERY): 3}, 0.5, 86_400.0),  # beyond all bounds
    ],
)
def test_percentiles_lie_between_the_bounds_of_a_histogram(counts, share, seconds):
    assert percentile(of(counts), share) == (None if seconds is None else pytest.approx(seconds))
