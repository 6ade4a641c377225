"""A schedule that is an array: one value per step, the last for ever, and phases behind it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.schedules import array_schedule, decay


def test_one_value_per_step_and_the_last_ever_after() -> None:
    values = array_schedule(np.array([3, 1, 2]))
    assert values(jnp.array([-1, 0, 1, 2, 3, 2**31 - 1])).tolist() == [3, 3, 1, 2, 2, 2]
    assert (values + decay("linear", 2))(jnp.arange(6)).tolist() == [3, 1, 2, 2, 1, 0]


def test_a_table_may_be_traced() -> None:
    got = jax.vmap(lambda table: array_schedule(table)(jnp.arange(3)))(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    assert got.tolist() == [[1, 2, 2], [3, 4, 4]]


@pytest.mark.parametrize(("values", "message"), [([], "not empty"), ([[1.0]], "one axis"), ("high", "of numbers")])
def test_bad_input(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        array_schedule(values)
