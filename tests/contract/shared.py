"""What several points of the contract ask of the same method, computed once.

Tests of one method stand behind each other (`tests/conftest.py`), so only the last method's numbers are kept.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax

from gradkit.catalogue import Card
from gradkit.engine.extras import samples
from tests.by_numpy import by_numpy
from tests.contract.methods import SMALL, draw, grads_like, make, step, told

STEPS = 3


class Shared:
    """A method as `make` builds it, at the learning rate 0.01.

    Attributes:
      tx: the method itself.
      numbers: the method with `init` and `update` computed by NumPy. Each is traced once for arguments of the same
        types, however many tests ask.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.tx = make(card)
        self.init, self.update = by_numpy(self.tx.init), by_numpy(self.tx.update)
        self.numbers = optax.GradientTransformationExtraArgs(self.init, self.update)

    def step(self, params: Any, state: Any, grads: Any, tx: Any = None) -> tuple[Any, Any]:
        """(params, state) after the step of every loop, with the extra arguments that `reference` has; of this method,
        or of the same one at another learning rate."""
        return step(self.tx if tx is None else tx, params, state, grads, **samples(grads, told(self.card)))

    @functools.cached_property
    def reference(self) -> list[tuple[Any, Any, Any]]:
        """(updates, parameters, state) after each of three steps in float64, computed by NumPy one after the other."""
        with jax.enable_x64(True):
            params, rows = draw(0, SMALL, np.float64), []
            state = self.init(params)
            for step in range(STEPS):
                updates, state = self.update(grads_like(params, step), state, params)
                params = jax.tree.map(lambda p, u: np.asarray(p) + np.asarray(u), params, updates)
                rows.append((updates, params, state))
            return rows

    @functools.cached_property
    def compiled(self) -> tuple[Any, Any]:
        """(parameters, state) after the same three steps, of one compiled program: a scan over the step of loops."""
        with jax.enable_x64(True):
            params = draw(0, SMALL, np.float64)
            grads = [grads_like(params, step) for step in range(STEPS)]

            def run(params: Any, state: Any, grads: Any) -> Any:
                return jax.lax.scan(lambda carry, g: (self.step(*carry, g), None), (params, state), grads)[0]

            stacked = jax.tree.map(lambda *g: np.stack(g), *grads)
            return jax.jit(run)(params, self.init(params), stacked)


_LAST: list[Shared] = []


def shared(card: Card) -> Shared:
    """What is known of a method; of the last one that was asked for."""
    if not _LAST or _LAST[0].card is not card:
        _LAST[:] = [Shared(card)]
    return _LAST[0]
