"""Direct feedback alignment: the error goes to every layer at once, through a fixed random matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide
from gradkit.engine.keys import as_key
from gradkit.types import Key

PAPER = Paper(
    "Principled Training of Neural Networks with Direct Feedback Alignment", "Launay et al.", 2019, "1906.04554"
)
Layer = Callable[[Any, Any], Any]


def init_feedback(key: Key, widths: Sequence[int], num_classes: int, *, normalize: bool = True) -> jax.Array:
    """The one random matrix that all layers take their feedback from.

        B ~ N(0, 1), (classes, widest),    divided by sqrt(classes widest) where it is normalized

    Args:
      key: a typed key or an integer.
      widths: of the hidden layers: numbers of entries of their outputs per example, each >= 1.
      num_classes: of the network's output, >= 1.
      normalize: whether it is divided (best practice of the paper). Default True.

    Returns:
      B, float32. It is not trained.

    Raises:
      ValueError: an argument outside its range, or no hidden layer.

    Example:
      >>> init_feedback(0, [12, 8], 5).shape
      (5, 12)

    Reference: Launay et al. Principled Training of Neural Networks with Direct Feedback Alignment. 2019, arXiv
    1906.04554.
    """
    checks.sequence(widths=widths)
    num_classes = checks.integer("num_classes", num_classes, 1)
    checks.switch(normalize=normalize)
    if not len(widths):
        raise ValueError("widths must name the width of one hidden layer or more, got none; write widths=[128]")
    widest = max(checks.integer("widths", width, 1) for width in widths)
    B = jax.random.normal(as_key(key), (num_classes, widest))
    return B / (num_classes * widest) ** 0.5 if normalize else B


def _check(method: str, layers: Any, loss_fn: Any, feedback: Any) -> jax.Array:
    if not layers or not all(callable(layer) for layer in layers):
        raise ValueError(f"{method}: layers must be functions (params, input) -> output, the last without activation")
    checks.function("loss_fn", loss_fn)
    feedback = jnp.asarray(feedback)
    if feedback.ndim != 2 or not jnp.issubdtype(feedback.dtype, jnp.floating):
        raise ValueError(
            f"{method}: feedback must be a matrix (classes, widest layer), got {feedback.dtype} of shape "
            f"{feedback.shape}; write init_feedback(key, widths, num_classes)"
        )
    return feedback


def _sent(method: str, e: jax.Array, B: jax.Array, normalize: bool, y: jax.Array, number: int) -> jax.Array:
    """e B_l, in the shape of the output of a layer."""
    width = y[0].size
    if width > B.shape[1]:
        raise ValueError(
            f"{method}: feedback must be as wide as the widest layer, got {B.shape[1]} columns for layer {number} with "
            f"{width} outputs; write init_feedback(key, widths, num_classes) with all widths"
        )
    columns = B[:, :width].astype(e.dtype) * ((B.shape[1] / width) ** 0.5 if normalize else 1.0)
    return jnp.dot(e, columns, precision="highest").reshape(y.shape).astype(y.dtype)


def _error(method: str, loss: Callable[[Any], Any], logits: jax.Array, B: jax.Array) -> tuple[Any, jax.Array]:
    if logits.ndim != 2 or logits.shape[1] != B.shape[0]:
        raise ValueError(
            f"{method}: the last layer must give (batch, classes) with {B.shape[0]} classes, as feedback has rows; got "
            f"shape {logits.shape}"
        )
    return jax.value_and_grad(loss)(logits)


def direct_feedback_alignment(
    layers: Sequence[Layer], loss_fn: Callable[..., Any], feedback: Any, *, normalize: bool = True
) -> Callable[..., tuple[Any, Any]]:
    """Gradients without a backward pass through the network: every hidden layer gets the error through a random matrix.

        h_l = layer_l(theta_l, h_{l-1}),    l = 1 .. L,    h_0 = x,    e = dloss/dh_L
        B_l = B[:, :d_l] sqrt(widest / d_l)                            d_l the entries of h_l per example
        dtheta_l = (dh_l/dtheta_l)^T (e B_l),  l < L,    dtheta_L = (dh_L/dtheta_L)^T e

    h_l is the output of a layer AFTER its activation: the derivative of the activation is part of dh_l/dtheta_l. e has
    the same mean or sum over the batch as the loss. Layers may run backward all at once. Layers that are much narrower
    than the others do not align; tanh and batch normalization help, dropout does not.

    Args:
      layers: functions (params of the layer, input) -> output, with a leading axis of examples; the last gives logits.
      loss_fn: (logits, *args) -> scalar.
      feedback: B, (classes, widest), from `init_feedback`. With B the transposed last matrix, one hidden layer has the
        gradient of backpropagation.
      normalize: whether the columns of a layer are multiplied by sqrt(widest / d_l). Default True; False together with
        that of `init_feedback`.

    Returns:
      fn(params, x, *args) -> (value, gradients): params is a sequence of one tree per layer, and so are the gradients.
      No state but B. Every layer is differentiated by itself.

    Raises:
      ValueError: layers that are no functions, a feedback that is no matrix; when called, shapes that do not fit.

    Example:
      >>> layers = [lambda w, x: jnp.tanh(x @ w), lambda w, x: x @ w]
      >>> fn = direct_feedback_alignment(layers, lambda y: jnp.sum(y), init_feedback(0, [3], 2))
      >>> value, grads = fn([jnp.ones((4, 3)), jnp.ones((3, 2))], jnp.ones((5, 4)))
      >>> [g.shape for g in grads]
      [(4, 3), (3, 2)]

    Reference: Launay et al. Principled Training of Neural Networks with Direct Feedback Alignment. 2019, arXiv
    1906.04554. In the official code the hidden layers' error is not divided by the batch whatever the loss is; here it
    is that of the loss.
    """
    checks.arrays(feedback=feedback)
    checks.sequence_of_functions(layers=layers)
    checks.switch(normalize=normalize)
    B = _check("direct_feedback_alignment", layers, loss_fn, feedback)

    def fn(params: Any, x: Any, *args: Any) -> tuple[Any, Any]:
        if len(params) != len(layers):
            raise ValueError(
                f"direct_feedback_alignment: params must have one tree per layer, got {len(params)} for {len(layers)}"
            )
        h, pullbacks, outputs = jnp.asarray(x), [], []
        for layer, own in zip(layers, params, strict=True):
            # The input is a constant here: nothing goes back through it.
            h, pullback = jax.vjp(lambda p, layer=layer, h=h: layer(p, h), own)
            pullbacks.append(pullback)
            outputs.append(h)
        value, e = _error("direct_feedback_alignment", lambda y: loss_fn(y, *args), h, B)
        grads = [
            pullback(e if i + 1 == len(layers) else _sent("direct_feedback_alignment", e, B, normalize, y, i))[0]
            for i, (pullback, y) in enumerate(zip(pullbacks, outputs, strict=True))
        ]
        return value, type(params)(grads) if isinstance(params, list | tuple) else grads

    return fn


def feedback_alignment(
    layers: Sequence[Layer], loss_fn: Callable[..., Any], feedback: Any, *, normalize: bool = True
) -> Callable[..., list[jax.Array]]:
    """How far direct feedback points where backpropagation would, of every hidden layer and every example.

        a_l = cos(e B_l, dloss/dh_l)        1: the same direction, 0: unrelated

    Args:
      layers: as of `direct_feedback_alignment`.
      loss_fn: (logits, *args) -> scalar.
      feedback: B.
      normalize: as of `direct_feedback_alignment`. Default True.

    Returns:
      fn(params, x, *args) -> a list of arrays (batch,), one per hidden layer; 0 where one of both is 0.

    Raises:
      ValueError: as `direct_feedback_alignment`.

    Example:
      >>> w = jnp.array([[1.0, 2.0], [0.0, 1.0], [1.0, 1.0]])
      >>> fn = feedback_alignment([lambda p, x: x @ p, lambda p, x: x @ p], lambda y: jnp.sum(y**2), w.T)
      >>> print(fn([jnp.ones((4, 3)), w], jnp.ones((2, 4)))[0].round(5))
      [1. 1.]

    Reference: Launay et al. Principled Training of Neural Networks with Direct Feedback Alignment. 2019, arXiv
    1906.04554. Of the outputs of layers, behind the activation, whose derivative the paper's angle has as a factor.
    """
    checks.arrays(feedback=feedback)
    checks.sequence_of_functions(layers=layers)
    checks.switch(normalize=normalize)
    B = _check("feedback_alignment", layers, loss_fn, feedback)

    def fn(params: Any, x: Any, *args: Any) -> list[jax.Array]:
        outputs, h = [], jnp.asarray(x)
        for layer, own in zip(layers, params, strict=True):
            h = layer(own, h)
            outputs.append(h)
        _, e = _error("feedback_alignment", lambda y: loss_fn(y, *args), h, B)
        found, true = [], e
        for i in reversed(range(1, len(layers))):
            (true,) = jax.vjp(lambda h, i=i: layers[i](params[i], h), outputs[i - 1])[1](true)
            sent, own = (
                v.reshape(len(v), -1) for v in (_sent("feedback_alignment", e, B, normalize, true, i - 1), true)
            )
            lengths = jnp.linalg.norm(sent, axis=1) * jnp.linalg.norm(own, axis=1)
            found.append(divide(jnp.sum(sent * own, axis=1), lengths))
        return found[::-1]

    return fn


register(
    direct_feedback_alignment,
    form="program",
    paper=PAPER,
    golden=("estimators/direct_feedback_alignment",),
    notes="no backward pass through the network; the feedback matrix is fixed",
)
register(init_feedback, form="function", paper=PAPER, example={"key": 0, "widths": (12, 8), "num_classes": 5})
register(feedback_alignment, form="program", paper=PAPER)
