"""Metagradients: the derivative of the result of a training run by anything it depends on, in little memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype, widen
from gradkit.engine.keys import as_key
from gradkit.engine.matching import check_match
from gradkit.types import Key

PAPER = Paper("Optimizing ML Training with Metagradient Descent", "Engstrom et al.", 2025, "2503.13751")
StepFn = Callable[[Any, Any, jax.Array], Any]


def levels(total_steps: int, branching: int) -> int:
    """ceil(log_k T), in integers.

    >>> levels(1, 2), levels(8, 2), levels(9, 2), levels(81, 3)
    (0, 3, 4, 4)
    """
    count, reached = 0, 1
    while reached < total_steps:
        count, reached = count + 1, reached * branching
    return count


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x) if not hasattr(x, "dtype") else x.dtype, jnp.floating))


class _Parts:
    """The floating point leaves of a state, which have a derivative, and the others (counters, keys)."""

    def __init__(self, state: Any) -> None:
        leaves, self.structure = jax.tree.flatten(state)
        self.floating = [_is_float(x) for x in leaves]

    def apart(self, state: Any) -> tuple[list[Any], list[Any]]:
        leaves = self.structure.flatten_up_to(state)
        pairs = list(zip(leaves, self.floating, strict=True))
        return [x for x, floating in pairs if floating], [x for x, floating in pairs if not floating]

    def together(self, floating: list[Any], others: list[Any]) -> Any:
        values, rest = iter(floating), iter(others)
        return self.structure.unflatten([next(values) if is_float else next(rest) for is_float in self.floating])


def replay_grad(
    step_fn: StepFn,
    outer_loss: Callable[[Any], jax.Array],
    state0: Any,
    meta: Any,
    total_steps: int,
    branching: int = 2,
) -> tuple[jax.Array, Any]:
    """The loss at the end of a training run, and its exact gradient with respect to what the run depends on (REPLAY).

    Equations:

        s_{t+1} = step(s_t, z, t),   value = loss(s_T)                      t = 0 ... T - 1
        D_T = d loss / d s_T
        (D_t, b_t) = vjp of step at (s_t, z), applied to D_{t+1}            t = T - 1 ... 0
        gradient = sum of b_t

    The states are needed in reverse order. A segment [a, b) is divided into k parts, the first states of the parts are
    computed from that of the segment and kept, and the parts are processed in the same way, the last one first: at most
    (k - 1) ceil(log_k T) + 1 states are in memory, and every step is computed at most ceil(log_k T) + 1 times.

    Args:
      step_fn: (state, meta, t) -> state, one step of training: pure and deterministic. The state holds parameters, the
        state of the optimizer, counters, keys; t is an int32 scalar, from 0. What differs from step to step (data, or a
        learning rate in `meta`) is indexed by t.
      outer_loss: state -> scalar, such as the validation loss.
      state0: the first state. Floating point leaves should be float32 at least.
      meta: z, with respect to which is differentiated, any tree of floating point arrays: weights of examples, learning
        rates, data.
      total_steps: T, >= 1.
      branching: k, >= 2: with a larger k there are fewer passes over the steps, and more states in memory. Default 2.

    Returns:
      (value, gradient like `meta`): those of `jax.value_and_grad` through all steps. Memory: (k - 1) ceil(log_k T) + 1
      states, and one step with its derivative. Time: T derivatives of a step, and less than T ceil(log_k T) steps.
      Compiled once for all steps; it cannot be differentiated again. Collectives: those of the steps.

    Raises:
      ValueError: an argument outside its range; a `meta` that is not floating point; a state that changes its tree
        structure, shapes or dtypes.

    Example:
      >>> descend = lambda x, rates, t: x - rates[t] * 3.0 * x  # gradient descent on 3 x^2 / 2
      >>> value, g = replay_grad(descend, lambda x: x, jnp.array(2.0), jnp.array([0.5, 0.25]), 2)
      >>> print(value, g)  # -3 times the product of the other factors
      -0.25 [-1.5  3. ]

    Reference: Engstrom et al. Optimizing ML Training with Metagradient Descent. 2025, arXiv 2503.13751. The derivative
    of Adam's root is infinite where its second moment is 0: give it an `eps_root` > 0.
    """
    checks.arrays(state0=state0)
    checks.arrays(meta=meta)
    checks.function("step_fn", step_fn)
    checks.function("outer_loss", outer_loss)
    T = checks.integer("total_steps", total_steps, 1)
    k = checks.integer("branching", branching, 2)
    state0, meta = (jax.tree.map(jnp.asarray, tree) for tree in (state0, meta))
    if not all(map(_is_float, jax.tree.leaves(meta))):
        raise ValueError(
            "replay_grad: meta must have floating point arrays alone, with respect to which is differentiated; put "
            "others into the state"
        )
    parts, number = _Parts(state0), lambda i: jnp.asarray(i, jnp.int32)

    def step(state: Any, t: jax.Array) -> Any:
        new = step_fn(state, meta, t)
        if jax.tree.structure(new) != parts.structure:
            raise ValueError(
                f"replay_grad: step_fn must return a state like the one it is given, {parts.structure}, got "
                f"{jax.tree.structure(new)}"
            )
        return jax.tree.map(lambda n, old: n.astype(old.dtype) if _is_float(old) else n, new, state)

    def put(stack: Any, i: jax.Array, state: Any) -> Any:
        return jax.tree.map(lambda s, x: jax.lax.dynamic_update_index_in_dim(s, x, i, 0), stack, state)

    def top(stack: Any, i: jax.Array) -> Any:
        return jax.tree.map(lambda s: jax.lax.dynamic_index_in_dim(s, i, 0, keepdims=False), stack)

    def divided(stack: Any, starts: jax.Array, depth: jax.Array, b: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        """Divides the segment on top of the stack into at most k parts, whose first states are pushed on the stack."""
        length = b - starts[depth]
        size = (length + (k - 1)) // k

        def part(_: Any, carry: Any) -> Any:
            state, stack, starts, depth = carry
            a = starts[depth]
            state = jax.lax.fori_loop(a, a + size, lambda t, s: step(s, t), state)
            return state, put(stack, depth + 1, state), starts.at[depth + 1].set(a + size), depth + 1

        parts_left = (length + size - 1) // size - 1
        carry = (top(stack, depth), stack, starts, depth)
        return jax.lax.fori_loop(number(0), parts_left, part, carry)[1:]

    def reversed_step(state: Any, t: jax.Array, value: jax.Array, D: list[Any], total: Any) -> tuple[Any, Any, Any]:
        floating, others = parts.apart(state)

        def run(floating: list[Any], meta: Any) -> tuple[list[Any], list[Any]]:
            new = step_fn(parts.together(floating, others), meta, t)
            new, rest = parts.apart(new)
            return [n.astype(x.dtype) for n, x in zip(new, floating, strict=True)], rest

        new, back, rest = jax.vjp(run, floating, meta, has_aux=True)

        def ended() -> tuple[jax.Array, list[Any]]:
            loss = lambda new: outer_loss(parts.together(new, rest))  # noqa: E731
            found, D = jax.value_and_grad(loss)(new)
            return found.astype(value.dtype), D

        value, D = jax.lax.cond(t == T - 1, ended, lambda: (value, D))
        D, b = back(D)
        return value, D, jax.tree.map(lambda s, x: s + x.astype(s.dtype), total, b)

    def body(carry: Any) -> Any:
        stack, starts, depth, b, value, D, total = carry
        longer = lambda c: b - c[1][c[2]] > 1  # noqa: E731
        stack, starts, depth = jax.lax.while_loop(longer, lambda c: divided(*c, b), (stack, starts, depth))
        value, D, total = reversed_step(top(stack, depth), b - 1, value, D, total)
        # A segment that begins where the remaining steps end has been processed.
        return stack, starts, depth - (starts[depth] == b - 1).astype(jnp.int32), b - 1, value, D, total

    room = (k - 1) * levels(T, k) + 1
    stack = jax.tree.map(lambda x: jax.lax.broadcast(x, (room,)), state0)
    value = jnp.zeros((), jnp.result_type(jax.eval_shape(outer_loss, state0)))
    D = [jnp.zeros_like(x) for x in parts.apart(state0)[0]]
    total = jax.tree.map(lambda x: jnp.zeros_like(x, wide_dtype(x.dtype)), meta)
    carry = (stack, jnp.zeros((room,), jnp.int32), number(0), number(T), value, D, total)
    *_, value, D, total = jax.lax.while_loop(lambda carry: carry[3] > 0, body, carry)
    return value, jax.tree.map(lambda s, x: s.astype(x.dtype), total, meta)


def metasmoothness(train_fn: Callable[[Any], Any], meta: Any, direction: Any, h: Any) -> jax.Array:
    """How smoothly a training run changes with what it depends on, which says whether metagradients are meaningful.

    Equations:

        x_h = train(z + h v),   w_i = |x_h - x_0|_i / sum_j |x_h - x_0|_j
        S = sum_i w_i sign(x_h - x_0)_i sign(x_2h - x_h)_i

    Args:
      train_fn: meta -> trained parameters (or predictions), any tree.
      meta: z.
      direction: v, a tree like `meta`.
      h: length of the steps along it, > 0.

    Returns:
      A number in [-1, 1]: 1 where both changes have the same sign, about 0 where changes are noise; 0 where nothing
      changes. Costs three runs. Runs are smoother with normalization before activations, logits divided by about 10,
      average pooling, more width, and an `eps_root` of Adam.

    Raises:
      ValueError: `h` outside its range, or a direction that does not match.

    Example:
      >>> train = lambda z: jnp.stack([z**2, jnp.sin(10 * z)])
      >>> round(float(metasmoothness(train, jnp.array(1.0), jnp.array(1.0), 0.1)), 3)  # the sine comes back
      -0.369

    Reference: Engstrom et al. Optimizing ML Training with Metagradient Descent. 2025, arXiv 2503.13751.
    """
    checks.arrays(meta=meta, direction=direction)
    checks.function("train_fn", train_fn)
    checks.real("h", h, "(0, inf)")
    meta, direction = (jax.tree.map(jnp.asarray, tree) for tree in (meta, direction))
    check_match("metasmoothness", direction, meta)

    def trained(times: int) -> Any:
        moved = lambda z, v: z + jnp.asarray(times * h, z.dtype) * v.astype(z.dtype)  # noqa: E731
        return widen(train_fn(jax.tree.map(moved, meta, direction)))

    start, once, twice = (trained(i) for i in range(3))

    def sums(x: jax.Array, y: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = y - x, z - y
        return jnp.sum(jnp.abs(first) * jnp.sign(first) * jnp.sign(second)), jnp.sum(jnp.abs(first))

    rows = [sums(*leaves) for leaves in zip(*map(jax.tree.leaves, (start, once, twice)), strict=True)]
    agreed, changed = (sum(column[1:], column[0]) for column in zip(*rows, strict=True))
    return jnp.where(changed > 0, agreed / jnp.where(changed > 0, changed, jnp.ones_like(changed)), 0)


def metagradient_descent(counts: Any, gradient: Any, key: Key, p: Any = 0.5) -> Any:
    """One step of the paper's descent on counts of examples: random ones of them change by one, against the gradient.

    Equations:

        counts <- max(counts - sign(gradient) Bernoulli(p), 0)

    Args:
      counts: how often each example is in the data, a tree of arrays.
      gradient: the metagradient, a tree like `counts`, such as from `replay_grad`.
      key: a random key (typed key or integer).
      p: probability with which a count changes, in [0, 1]. Default 0.5.

    Returns:
      New counts, in their dtypes. Elementwise: no collective.

    Raises:
      ValueError: `p` outside its range; trees that do not match.

    Example:
      >>> print(metagradient_descent(jnp.array([1.0, 1.0, 0.0]), jnp.array([2.0, -3.0, 0.1]), 0, p=1.0))
      [0. 2. 0.]

    Reference: Engstrom et al. Optimizing ML Training with Metagradient Descent. 2025, arXiv 2503.13751. The lower bound
    0 of counts is added by this library.
    """
    checks.arrays(counts=counts, gradient=gradient)
    checks.real("p", p, "[0, 1]")
    counts, gradient = (jax.tree.map(jnp.asarray, tree) for tree in (counts, gradient))
    check_match("metagradient_descent", gradient, counts)
    leaves, structure = jax.tree.flatten(counts)
    keys = jax.random.split(as_key(key), max(len(leaves), 1))

    def leaf(c: jax.Array, g: jax.Array, key: jax.Array) -> jax.Array:
        moves = jax.random.bernoulli(key, p, c.shape)
        return jnp.maximum(c - jnp.where(moves, jnp.sign(g), jnp.zeros_like(g)).astype(c.dtype), 0)

    return structure.unflatten([leaf(*row) for row in zip(leaves, jax.tree.leaves(gradient), keys, strict=False)])


register(replay_grad, form="program", paper=PAPER, notes="memory grows with the logarithm of the steps")
register(metasmoothness, form="program", paper=PAPER)
register(metagradient_descent, form="program", paper=PAPER)
