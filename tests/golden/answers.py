"""What this library answers to files of batches, of dual descent, and of functions of arrays."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.golden import fixture
from tests.golden.translate import known


def _batch_tests(golden: fixture.Golden) -> dict[str, Any]:
    """The example gradients follow from the seed; the file holds what the tests answer, and their variances."""
    hyper, start, want = golden.meta["hyper"], fixture.params(golden), golden.extra()
    n = hyper["batch_size"]
    rows = [fixture.grads(golden, i) for i in range(n)]
    grads = {leaf: jnp.stack([jnp.asarray(r[leaf] + hyper["signal"] * x) for r in rows]) for leaf, x in start.items()}
    mean = {leaf: g.mean(0) for leaf, g in grads.items()}
    var = {leaf: g.var(0, ddof=1) for leaf, g in grads.items()}
    tests: dict[str, Callable[[Any], Any]] = {
        "norm": lambda eta: gk.batches.norm_test(mean, var, batch_size=n, eta=eta),
        "ip": lambda theta: gk.batches.inner_product_test(grads, theta=theta),
        "orth": lambda nu: gk.batches.orthogonality_test(grads, nu=nu),
    }
    got: dict[str, Any] = {
        f"{name}_batch": test(hyper[threshold])
        for (name, test), threshold in zip(tests.items(), ("eta", "theta", "nu"), strict=True)
    }
    square = gk.diagnostics.from_moments(gk.gradients.GradientMoments(mean, var, jnp.ones(()), jnp.int32(n)))["sq_big"]
    got["grad_norm_sq"] = square
    # With the threshold at which the reference's own variance asks for half an example less than 10^9, the answer is
    # 10^9: to half of 1e-9 the variance is known by it.
    variances = zip(tests.values(), ("variance_l1", "ip_variance", "orth_variance"), (1, 2, 1), strict=True)
    for test, variance, power in variances:
        threshold = np.sqrt(want[variance] / want["grad_norm_sq"] ** power / (1e9 - 0.5))
        got[variance] = want[variance] * (float(test(float(threshold))) / 1e9)
    return got


def _multigrid(golden: fixture.Golden) -> dict[str, Any]:
    hyper = dict(golden.meta["hyper"])
    plan = gk.batches.multigrid_schedule(hyper.pop("batch_size"), **hyper)
    return {
        "schedule": np.asarray(plan.rows, np.float64),
        "lr_steps": np.asarray(plan.boundaries),
        "lrs": np.asarray(plan.rates),
        "max_epoch": plan.max_epoch,
    }


def _dual_descent(golden: fixture.Golden) -> dict[str, Any]:
    """Step after step on the rows of the file; the weights are the parameters, without nesterov."""
    extra, own = golden.extra(), golden.hyper()
    K, targets, noise = jnp.asarray(extra["kernel"]), jnp.asarray(extra["targets"]), own["noise_variance"]
    tx = gk.stochastic_dual_descent(**known(own, "noise_variance"))

    def step(carry: Any, idx: jax.Array) -> Any:
        alpha, state = carry
        updates, state = tx.update(gk.dual_gradient(K[idx], alpha, targets, noise, idx), state, alpha)
        alpha = alpha + updates
        return (alpha, state), (alpha, gk.eval_params(state, alpha))

    start = jnp.zeros_like(targets)
    _, (alphas, averages) = jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(extra["indices"]))
    given = {name: extra[name] for name in ("kernel", "targets", "indices")}
    return {**given, "alpha": alphas, "alpha_average": averages}


def _tract(hyper: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    linear = partial(gk.layers.tract_linear, damping=hyper["damping"])
    conv = partial(gk.layers.tract_conv, strides=hyper["stride"], padding=hyper["padding"], damping=hyper["damping"])
    out = {}
    for form in ("wide", "tall"):
        x, w, b = (jnp.asarray(extra[f"{form}/{name}"]) for name in ("x", "grad_kernel", "grad_bias"))
        _, back = jax.vjp(lambda w, b, x=x: linear(x, w, b), jnp.ones_like(w), jnp.ones_like(b))
        dw, db = back(jnp.asarray(extra[f"{form}/grad_out"]))
        out |= {f"{form}/grad_kernel": dw, f"{form}/grad_bias": db}
    k = jnp.asarray(extra["conv/grad_kernel_hwio"])
    _, conv_back = jax.vjp(lambda k: conv(jnp.asarray(extra["conv/x_nhwc"]), k), jnp.ones_like(k))
    (dk,) = conv_back(jnp.asarray(extra["conv/grad_out_nhwc"]))
    return {**out, "conv/grad_kernel_hwio": dk}


def _farms(hyper: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    own = dict(hyper)
    tail = {"xmin_pos": own.pop("xmin_pos"), "fitting": own.pop("pl_fitting")}
    out = {}
    for name in (name.removeprefix("matrix/") for name in arrays if name.startswith("matrix/")):
        eigs = gk.diagnostics.farms_eigs(arrays[f"matrix/{name}"], **own)
        found = gk.diagnostics.powerlaw_alpha(eigs, **tail)
        out |= {f"eigs/{name}": eigs, f"output/{name}": jnp.stack([found.alpha, found.distance])}
    return out


# method -> (file -> name of an array -> what this library answers)
ANSWERS: dict[str, Callable[[fixture.Golden], dict[str, Any]]] = {
    "multigrid_schedule": _multigrid,
    "norm_test, inner_product_test, orthogonality_test": _batch_tests,
    "stochastic_dual_descent": _dual_descent,
}


# method -> (hyper, arrays -> some of the arrays, computed)
FUNCTIONS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "farms": _farms,
    "tract": _tract,
}
