"""What this library answers to files of arrays about estimators, selections and layers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradkit as gk
from gradkit.layers.reinmax import of_sample
from tests.golden.translate import known

Arrays = dict[str, Any]


def _reinmax(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    given = {name: jnp.asarray(value) for name, value in arrays.items()}
    tau = jnp.asarray(known(hyper).get("tau", 1.0))
    (_, probs), back = jax.vjp(lambda x: of_sample(x, given["sample"], tau), given["logits"])
    (g,) = back((given["cotangent_sample"], given["cotangent_softmax"]))
    return {"softmax": probs, "output": g}


def _reste(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    own = {**known(hyper, "interval"), "chord": hyper["interval"]}
    forward, back = jax.vjp(lambda x: gk.layers.reste_sign(x, **own), jnp.asarray(arrays["x"]))
    return {"forward": forward, "output": back(jnp.asarray(arrays["cotangent"]))[0]}


def _feedback(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    own = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}[hyper["activation"]]
    reduce = {"sum": jnp.sum, "mean": jnp.mean}[hyper["loss"].split(" ")[0]]
    assert hyper["loss"].endswith("of softmax cross entropy")
    depth = sum(name.startswith("w") for name in arrays)
    params = [(jnp.asarray(arrays[f"w{i}"]), jnp.asarray(arrays[f"b{i}"])) for i in range(1, depth + 1)]
    last = lambda p, x: x @ p[0] + p[1][None]  # noqa: E731
    layers = [lambda p, x: own(last(p, x))] * (depth - 1) + [last]

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return reduce(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    rescale = hyper["feedback_normalization"]
    fn = gk.gradients.direct_feedback_alignment(layers, loss, arrays["feedback"], normalize=rescale)
    _, grads = fn(params, arrays["inputs"], jnp.asarray(arrays["labels"]))
    return {f"output/{name}{i}": g for i, pair in enumerate(grads, 1) for name, g in zip("wb", pair, strict=True)}


def _gio(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    x, pool, start = (jnp.asarray(arrays[name]) for name in ("target", "train", "initial"))
    kl = partial(gk.batches.gio_kl, x, k=hyper["k"])
    center = jnp.mean(x, axis=0)
    g = jax.grad(lambda v: kl(jnp.concatenate([start, v[None]])))(center)
    # The file has a round more than it counts.
    own = {"steps": hyper["grad_desc_iter"], "learning_rate": hyper["learning_rate"], "k": hyper["k"]}
    own |= {"v_init": hyper["v_init"], "scale": None if hyper["scale_factor"] == "auto" else hyper["scale_factor"]}
    found = gk.batches.gio_select(pool, x, start, num_select=hyper["max_iter"] + 1, stop="never", **own)
    return {
        "kl": kl(start),
        "grad_at_mean": g,
        "scale_factor": own["scale"] or jnp.linalg.norm(center) / jnp.linalg.norm(g),
        "selected": pool[found.indices],
        "kls": found.kls,
    }


FUNCTIONS = {"direct_feedback_alignment": _feedback, "gio": _gio, "reinmax": _reinmax, "reste": _reste}
