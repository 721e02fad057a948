"""What ranks send each other is what docs/scale.md says, to the message and the byte."""

import importlib.util
from pathlib import Path

import pytest
import ranks

SOURCE = Path(__file__).parents[1] / "benchmarks" / "costs.py"
if not SOURCE.exists():
    pytest.skip("benchmarks/ is not beside the tests", allow_module_level=True)


def _rows(rank, *case):
    spec = importlib.util.spec_from_file_location("costs", SOURCE)
    costs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(costs)
    return [(name, tuple(counted), tuple(predicted)) for name, counted, predicted, _ in costs.Case(*case).rows()]


# Sizes of layers, columns of a product and of deviations, members. Sums in one message and by blocks, panels of 64
# columns and smaller ones, numbers that the ranks do not divide evenly.
CASES = {1: ((6, 5, 3), 3, 5, 2), 2: ((12, 10, 5), 300, 9, 7), 4: ((18, 12, 7), 5, 11, 9)}


@pytest.mark.parametrize("size", CASES)
def test_messages_and_bytes_are_those_of_the_formulas(size):
    for rank, rows in enumerate(ranks.run(size, _rows, *CASES[size])):
        assert len(rows) == 8
        for name, counted, predicted in rows:
            assert counted[:2] == predicted[:2], (rank, name)
            assert counted[0] > 0, name
            assert (counted[1] > 0) == (size > 1), name
