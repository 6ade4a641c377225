"""One vocabulary: what is the same thing has the same name in every public signature, and takes the same values."""

import inspect
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import gradkit as gk
from gradkit.catalogue import cards
from gradkit.training.methods import build
from gradkit.types import DTypeLike, Key, Mask, Scalar, ScalarOrSchedule
from tests.by_numpy import by_numpy
from tests.contract.methods import SMALL, draw, grads_like, supplied

# A user calls nothing of `checks` and of `cli`, which is there where another test has imported it, and the fields of a
# state are no arguments.
ROOMS = [
    getattr(gk, name)
    for name in dir(gk)
    if isinstance(getattr(gk, name), types.ModuleType) and name not in ("checks", "cli")
]

# A word of a paper or peer -> the word here. A description may name it, so that a search finds it.
WORDS = {
    "bias_correction": "correct_bias debias unbiased use_bias_correction",
    "update_interval": (
        "every frequency interval inverse_update_period period_of_update precondition_every precondition_frequency "
        "preconditioning_compute_steps preconditioner_update_freq refresh_every refresh_interval snapshot_every "
        "update_every update_freq update_frequency update_gap update_period update_proj_gap"
    ),
    "sync_every": "sync_frequency sync_interval sync_period synchronize_every",
    "max_dim": (
        "block_size_limit max_precond_dim max_preconditioner_dim max_preconditioned_dim max_size_triangular "
        "precond_max_dim size_limit"
    ),
    "merge_dims": "merge merge_small_dims",
    "key": "prng prng_key prngkey random_key random_seed rng rng_key rngs seed_or_key",
    "weight_decay": "wd",
    "weight_decay_mask": "decay_mask mask_weight_decay no_decay_mask wd_mask",
    "learning_rate": "lr rate_of_learning",
    "mu_dtype": "accumulator_dtype m_dtype moment_dtype momentum_dtype",
    "shard": "matrix_sharding matrix_mesh",
    "layout": "leaf_layout stack_axes",
    "b1": "beta1 beta_1",
    "b2": "beta2 beta_2",
    "initial_accumulator_value": "accumulator_init initial_accumulator",
    "cg_iterations": "cg_iters cg_steps",
    "cg_tolerance": "cg_tol",
    "tolerance": "rtol tol",
    "max_iters": "max_iter max_iterations maxiter",
    "iterations": "iters n_iter num_iters",
    "max_norm": "clip_norm max_grad_norm",
    "batch_size": "bs n_batch",
    "max_batch": "max_batch_size max_size",
    "chunk": "chunk_size",
    "num_params": "n_params",
    "num_examples": "n_data n_examples",
    "num_groups": "n_groups",
    "block_size": "quantization_block",
    "block": "granularity per",
    "per_tensor": "per_layer per_leaf",
    "window_size": "window window_length",
    "example_grads": "per_example_grads per_sample_grads",
    "hvp_fn": "hvp",
    "loss_fn": "loss_func value_func",
    "inner": "base_optimizer inner_optimizer inner_tx",
    "eps_in_sqrt": "eps_inside eps_inside_sqrt",
    "previous": "prev",
    "target": "goal",
    "momentum": "momentum_coefficient momentum_factor",
    "max_learning_rate": "max_lr max_rate",
    "peak_value": "peak",
    "init_value": "initial_value",
    "end_value": "final_value",
    "total_steps": "max_steps num_iterations num_training_steps total",
    "warmup_steps": "T num_warmup_steps warm_up_steps warmup warmup_iters warmup_length",
    "warmdown_steps": "warmdown",
    "nesterov": "use_nesterov",
    "num_samples": "n_samples number_of_samples samples",
    "trust_ratio_mask": "layer_adaptation_mask",
}
INSTEAD = {other: word for word, others in WORDS.items() for other in others.split()}


def signatures() -> dict[str, inspect.Signature]:
    """Of every public function and class, by its full name."""
    found = {}
    for room in (gk, *ROOMS):
        for name in getattr(room, "__all__", [n for n in dir(room) if not n.startswith("_")]):
            value = getattr(room, name)
            if not name.endswith("State") and _has_signature(value):
                found[f"{room.__name__}.{name}"] = inspect.signature(value)
    return found


def _has_signature(value: Any) -> bool:
    try:
        inspect.signature(value)
    except (TypeError, ValueError):
        return False
    return True


def test_one_word_for_one_thing() -> None:
    """Numbers, arrays and functions; a switch may have the word of its paper: `warmup` of `grokfast_ma`."""
    wrong = [
        f"{name}({argument.name}): write {INSTEAD[argument.name]}"
        for name, signature in signatures().items()
        for argument in signature.parameters.values()
        if argument.name in INSTEAD and argument.annotation is not bool
    ]
    assert not wrong, "\n".join(wrong)


# What an argument is annotated with, and the values that it may have where it is left out.
KINDS: dict[str, tuple[set[Any], Callable[[Any], bool]]] = {
    "update_interval": ({int}, lambda default: isinstance(default, int)),
    "max_dim": ({int}, lambda default: isinstance(default, int)),
    "key": ({Any, Key, Key | None}, lambda default: default is None),
    "weight_decay_mask": ({Any, Mask | None}, lambda default: default is None or isinstance(default, str)),
    "mu_dtype": ({Any, DTypeLike | None}, lambda default: default is None),
    "stagger": ({bool}, lambda default: default is False),
    "merge_dims": ({bool}, lambda default: isinstance(default, bool)),
}


@pytest.mark.parametrize("argument", KINDS)
def test_one_kind_of_value(argument: str) -> None:
    """Of methods: the same annotation, and a default of the same kind or none."""
    annotations, is_default = KINDS[argument]
    functions = {name: card.function for name, card in cards().items() if card.is_link}
    seen = 0
    for name, function in functions.items():
        if (given := inspect.signature(function).parameters.get(argument)) is None:
            continue
        seen += 1
        assert given.annotation in annotations, f"{name}: {given}"
        assert given.default is inspect.Parameter.empty or is_default(given.default), f"{name}: {given}"
    assert seen > 1


def test_bias_correction_is_a_switch_or_says_which() -> None:
    for name, card in cards().items():
        given = inspect.signature(card.function).parameters.get("bias_correction")
        assert given is None or isinstance(given.default, bool | str), name


def with_key() -> dict[str, Any]:
    return {
        name: card
        for name, card in cards().items()
        if card.is_link and "key" in inspect.signature(card.function).parameters
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", with_key())
def test_an_integer_is_a_key(name: str) -> None:
    """Where a method is built, and where it is called: 3 is `jax.random.key(3)`; what is neither is named."""
    card, params = with_key()[name], draw(0, SMALL)
    more = {"rounding": "stochastic"} if name == "precision" else {}
    more |= {"init_std": 1.0} if name == "scale_by_gravity" else {}
    more |= {"estimator": "hutchinson"} if name == "sophia" else {}
    more |= {"qr": "randomized_cholesky_qr", "rank_fraction": 0.5} if "dion" in name else {}
    with pytest.raises(ValueError, match="key must be a typed random key"):
        build(card, 0.01, key=0.5, **more)

    def run(built: Any, called: Any) -> Any:
        tx = supplied(card, build(card, 0.01, key=built, **more))
        init, update = by_numpy(tx.init), by_numpy(lambda *a, **k: tx.update(*a, **k, **called))
        return update(grads_like(params, 0), init(params), params)[0]

    same = [
        (run(3, {}), run(jax.random.key(3), {})),
        (run(3, {"key": 4}), run(3, {"key": jax.random.key(4)})),
    ]
    for one, other in same:
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(x, y)


def test_an_integer_is_a_key_of_functions() -> None:
    """Sources, layers and diagnostics that draw take 3 for `jax.random.key(3)` too."""
    x, w = np.ones((4, 2), np.float32), np.linspace(0.0, 1.0, 6, dtype=np.float32).reshape(2, 3)
    grads = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}
    calls: dict[str, Callable[[Any], Any]] = {
        "multiply_by_noise": lambda key: gk.gradients.multiply_by_noise(key, grads, 0.5),
        "hutchinson_diag": lambda key: gk.gradients.hutchinson_diag(lambda p: (p @ w).sum() ** 2, x, key),
        "gauss_newton_bartlett_diag": lambda key: gk.gradients.gauss_newton_bartlett_diag(
            lambda p, batch: batch @ p, lambda z, labels: (z * labels[:, None].astype(z.dtype)).sum(), w, x, key
        ),
        "lanczos": lambda key: gk.diagnostics.lanczos(lambda v: 2 * v, key, np.ones(3, np.float32), 2),
        "crs_linear": lambda key: jax.grad(lambda k: (gk.layers.crs_linear(x, k, key=key, budget=0.5) ** 2).sum())(w),
        "randomized_linear": lambda key: jax.grad(
            lambda k: (gk.layers.randomized_linear(x, k, key=key, ratio=0.5) ** 2).sum()
        )(w),
    }
    for name, call in calls.items():
        for a, b in zip(jax.tree.leaves(call(3)), jax.tree.leaves(call(jax.random.key(3))), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


# Arguments that are numbers in every method.
NUMBERS = ("learning_rate", "b1", "b2", "b3", "eps", "eps_root", "weight_decay", "max_norm")
KINDS_OF_NUMBERS = (Scalar, Scalar | None, ScalarOrSchedule, ScalarOrSchedule | None, float, int)


def test_numbers_are_annotated_as_numbers() -> None:
    """So that an editor knows that `b1="x"` is wrong."""
    wrong = [
        f"{name}({argument})"
        for name, card in cards().items()
        if card.is_link
        for argument in inspect.signature(card.function).parameters.values()
        if argument.name in NUMBERS and argument.annotation not in KINDS_OF_NUMBERS
    ]
    assert not wrong, "\n".join(wrong)


def test_a_type_checker_finds_a_wrong_number_and_takes_what_is_right(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text(
        "import gradkit as gk\nimport optax\n"
        "tx = optax.chain(gk.lamb(1e-3), gk.adamw(optax.constant_schedule(1e-3), b1=0.8))\n"
        "gk.adamw(1e-3, b1='x')\n"
    )
    (tmp_path / "pyrefly.toml").write_text("")  # else its mildest preset
    command = [sys.executable, "-m", "pyrefly", "check", str(file), "--output-format", "min-text"]
    command += ["--python-interpreter-path", sys.executable, "--search-path", str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1 and "user.py:4" in errors[0] and "`b1`" in errors[0], done.stdout + done.stderr
