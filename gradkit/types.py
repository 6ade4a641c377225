"""What arguments are, for editors and type checkers: the aliases that every public signature is written with.

Scalar              a number that may be traced: a float, an int, or an array without axes
ScalarOrSchedule    the same, or a schedule: a function from the number of the step to it
PyTree              any tree of arrays
Mask                which leaves: a tree of booleans, a function from parameters to one, or a selector as text
Key                 of random numbers: a typed key, or an integer that one is made of
DTypeLike           what `jnp.dtype` takes
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.typing import DTypeLike

__all__ = ["DTypeLike", "Key", "Mask", "PyTree", "Scalar", "ScalarOrSchedule"]

Scalar: TypeAlias = float | jax.Array
Schedule: TypeAlias = Callable[[Any], Any]
ScalarOrSchedule: TypeAlias = Scalar | Schedule
PyTree: TypeAlias = Any
Mask: TypeAlias = Any
Key: TypeAlias = int | jax.Array | np.integer
