"""What takes longest starts first: a run ends when its last test does.

Beginnings of the names of tests, the longest first, by the seconds that each was seen to take.
"""

from collections.abc import Iterable

import pytest

LONG = (
    "tests/training/test_processes.py",
    "tests/training/test_train.py::test_killed_at_any_step_it_ends_with_the_same_bits",
    "tests/training/test_checkpoint_files.py::test_two_processes",
    "tests/training/test_inspection.py",
    "tests/test_fused_weights.py",
    "tests/parallel/test_number_of_devices.py",
    "tests/parallel/test_owned.py::test_a_checkpoint_fits_any_mesh",
    "tests/training/test_cli.py",
    "tests/training/test_race.py",
    "tests/training/test_growth.py",
    "tests/test_refreshes.py",
    "tests/test_orthogonalize.py",
    "tests/parallel/test_norms.py",
    "tests/parallel/test_tensors.py",
    "tests/parallel/test_shardings.py",
    "tests/golden/",
)


def longest_first(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests of the table in its order, then the others in theirs."""
    place = {name: i for i, name in enumerate(LONG)}

    def key(item: pytest.Item) -> int:
        return next((i for name, i in place.items() if item.nodeid.startswith(name)), len(place))

    return sorted(items, key=key)
