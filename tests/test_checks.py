"""What every public function says to an argument of the wrong kind, and takes for a number."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit import checks
from gradkit.catalogue import Card, cards
from tests.contract.methods import make

ROOMS = (gk.aggregation, gk.batches, gk.diagnostics, gk.gradients, gk.linalg, gk.parallel, gk.schedules, gk.transforms)
CHAINS = {name: card for name, card in cards().items() if card.is_link}
# What `dtype` of a selector says is a family of dtypes, integers too.
NOT_A_COMPUTATION = {"by_dtype"}


def public() -> dict[str, Callable[..., Any]]:
    """Every public function, by name."""
    found = {}
    for room in (gk, *ROOMS):
        for name in dir(room):
            function = getattr(room, name)
            if inspect.isfunction(function) and not name.startswith("_") and function.__module__.startswith("gradkit"):
                found[name] = function
    return found


def loss(params: Any, *rest: Any) -> Any:
    """A loss."""
    del params, rest
    return jnp.float32(0)


def cards_example(name: str) -> Mapping[str, Any]:
    """What a card gives as an example of arguments."""
    return cards()[name].example if name in cards() else {}


# What functions without an example take for these arguments.
FUNCTIONS = ("loss_fn", "loss", "grad_fn", "value_func", "value_and_grad", "spec", "fn", "upper", "lower", "step_fn")
RIGHT: dict[str, Any] = {
    **dict.fromkeys(FUNCTIONS, loss),
    **dict.fromkeys(("learning_rate", "damping", "radius", "eps", "step"), 0.1),
    "workers": 4,
}


def right_of(parameter: inspect.Parameter) -> Any:
    """What is taken for an argument by its annotation: numbers for arrays, transformations for anything else."""
    text = str(parameter.annotation)
    if "Callable" in text:
        return (loss, loss) if "Sequence" in text else loss
    if "GradientTransformation" in text or parameter.name in TRANSFORMATIONS:
        return optax.trace(0.5)
    if parameter.annotation is str:
        return "name"
    if "Sequence" in text or "tuple" in text:
        return (0.5, 0.5)
    numeric = parameter.annotation is Any or "Array" in text
    return np.float32(0.5) if numeric else optax.trace(0.5)


def arguments(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """What a function must be given: the example of its card, and a transformation for the rest."""
    given = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, dict(cards_example(name))
    )
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            given.setdefault(parameter.name, RIGHT.get(parameter.name, right_of(parameter)))
    return given


def parameters(test: Callable[[inspect.Parameter], bool]) -> Iterator[tuple[str, str]]:
    """(function, parameter) of all public functions whose parameter passes a test."""
    for name, function in public().items():
        for parameter in inspect.signature(function).parameters.values():
            if test(parameter) and name not in NOT_A_COMPUTATION:
                yield name, parameter.name


SWITCHES = sorted(parameters(lambda p: isinstance(p.default, bool)))
DTYPES = sorted(parameters(lambda p: p.name.endswith("dtype")))


def refused(name: str, argument: str, value: Any) -> str:
    """The message a function refuses an argument with; empty where it does not refuse it by name."""
    function = public()[name]
    try:
        function(**{**arguments(name, function), argument: value})
    except ValueError as error:
        return str(error) if argument in str(error) else ""
    return ""


def is_count(p: inspect.Parameter) -> bool:
    """A whole number: by its default, or as it says."""
    return (isinstance(p.default, int) and not isinstance(p.default, bool)) or str(p.annotation) in (
        "int",
        "int | None",
    )


# Numbers whose default happens to be whole, and functions of arrays, which look at these first.
REAL = {"prediction_steps", "delay", "period_mult", "power", "num_data"}
OF_ARRAYS = {"inverse_root", "orthogonalize", "solve_lcp", "project_out_subspace", "singular_basis", "lora_ga_init"}
OF_ARRAYS |= {"clip_pixelwise", "clip_pixels", "tiled_contrastive_loss", "ring_contrastive_loss"}
OF_ARRAYS |= {"damped_gauss_newton_solve", "top_hessian_eigenvalue", "sharpness"}
# Of functions, which are asked for first; and schedules whose batches and tokens are real numbers.
OF_ARRAYS |= {"ift_hypergradient", "neumann_ihvp", "replay_grad", "metasmoothness", "plot"}
OF_ARRAYS |= {"minimise_inner", "target_surrogate", "power_schedule"}
OF_ARRAYS |= {"backup_mean", "coded_mean", "shuffle_private_mean", "flush_buffer"}
# What it says is of the argument that stands for the wrong one there.
OF_ARRAYS |= {"compressor_of"}
TRANSFORMATIONS = {"inner", "outer", "denominator", "magnitude", "direction", "preconditioner", "bases", "tx"}
KINDS: dict[str, tuple[Callable[[inspect.Parameter], bool], tuple[Any, ...]]] = {
    "count": (lambda p: is_count(p) and p.name not in REAL, (2**40, 10**30, -(10**30), 2.5, "3")),
    "transformation": (
        lambda p: p.name in TRANSFORMATIONS and not isinstance(p.default, str),
        (0.1, "adam", optax.adam, object()),
    ),
    "key": (lambda p: p.name == "key" and p.default is None, (0.5, "0", True, 10**30)),
    "axis": (lambda p: p.name == "axis_name", (3, "", ("data", 1))),
    "shard": (lambda p: p.name == "shard", (0.1, "fsdp")),
    "probe": (lambda p: p.name == "probe" and p.default is None, (0.1, "gaussian", object())),
}


def first_complaint(name: str, argument: str, value: Any) -> str | None:
    """What a function says to a wrong value; None where the value is taken."""
    function = public()[name]
    given = {**arguments(name, function), argument: value}
    try:
        function(**given)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_values_are_refused_by_name_where_a_method_is_built(kind: str) -> None:
    """Integers that no counter holds, also those that would have Python loop for ever; arguments of another type."""
    test, wrong = KINDS[kind]
    pairs = [(name, argument) for name, argument in parameters(test) if name not in OF_ARRAYS]
    assert len(pairs) > {"count": 110, "transformation": 25, "key": 15, "axis": 15, "shard": 15, "probe": 2}[kind]
    missed = []
    for name, argument in pairs:
        for value in wrong:
            said = first_complaint(name, argument, value)
            if said is None or argument not in said:
                missed.append((name, argument, value, said))
    assert missed == []


def test_a_count_says_its_range() -> None:
    with pytest.raises(ValueError, match="ns_steps must be an integer >= 1 and <= 1000, got 1000000"):
        gk.muon(0.1, adam_learning_rate=0.1, ns_steps=10**6)
    with pytest.raises(ValueError, match=r"cg_iterations must be an integer >= 1 and <= 2147483647, got 2147483648"):
        gk.egn(cg_iterations=2**31)
    assert checks.integer("n", 2**31 - 1) == 2**31 - 1


def test_every_switch_is_true_or_false() -> None:
    """`nesterov="False"` would mean True."""
    assert len(SWITCHES) > 150
    assert [pair for pair in SWITCHES for bad in ("False", 2) if not refused(*pair, bad)] == []


def test_every_dtype_is_of_floating_point_numbers() -> None:
    """With an integer accumulator every update would be 0."""
    assert len(DTYPES) > 80
    for bad in (jnp.int32, "uint8", "no dtype"):
        assert [pair for pair in DTYPES if "floating point" not in refused(*pair, bad)] == []


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, ml_dtypes.float8_e4m3fn, np.float64, "bfloat16"])
def test_every_floating_dtype_is_one(dtype: Any) -> None:
    """By the name, as a type and as a dtype."""
    checks.floating_dtype(mu_dtype=dtype)


def test_a_dtype_of_its_own_keeps_the_momentum() -> None:
    """The check lets through what the state is then kept in."""
    state: Any = gk.transforms.trace(0.9, mu_dtype="bfloat16").init(jnp.ones(2))
    assert state.trace.dtype == jnp.bfloat16


SCALARS = [jnp.float16, jnp.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("dtype", SCALARS)
@pytest.mark.parametrize("array", [jnp.asarray, np.asarray, lambda x, dtype: np.dtype(dtype).type(x)])
def test_a_narrow_scalar_is_a_number(array: Callable[..., Any], dtype: Any) -> None:
    """NumPy takes such dtypes for opaque bytes."""
    checks.real("x", array(0.5, dtype), "[0, 1]")
    with pytest.raises(ValueError, match=r"x must be in \[0, 1\]"):
        checks.real("x", array(2.0, dtype), "[0, 1]")
    with pytest.raises(ValueError, match=r"x must be in \[0, 1\]"):
        checks.real("x", array(np.nan, dtype), "[0, 1]")


def test_narrow_scalars_are_numbers_for_every_argument() -> None:
    """Wherever a float32 scalar is a number, one of bfloat16 is."""
    wrong, seen = [], 0
    for name, card in CHAINS.items():
        for parameter in inspect.signature(card.function).parameters.values():
            if parameter.name != "learning_rate" and not isinstance(parameter.default, float):
                continue
            given = arguments(name, card.function)
            try:
                card.function(**{**given, parameter.name: jnp.float32(0.5)})
            except (ValueError, TypeError):
                continue
            seen += 1
            try:
                card.function(**{**given, parameter.name: jnp.bfloat16(0.5)})
            except (ValueError, TypeError) as error:
                wrong.append((name, parameter.name, str(error)))
    assert wrong == []
    assert seen > 200


def test_an_injected_rate_in_bfloat16() -> None:
    """A value of any floating dtype can be put into the state."""
    tx: Any = gk.inject_hyperparams(gk.adam)(0.1)
    x = jnp.array([1.0, -1.0])
    state = tx.init(x)
    state.hyperparams["learning_rate"] = jnp.bfloat16(0.25)
    updates, _ = tx.update(x, state, x)
    # The first step is the sign times the rate, but for eps and a few roundings of float32.
    np.testing.assert_allclose(updates, [-0.25, 0.25], rtol=1e-6)


VALUED = sorted(name for name, card in CHAINS.items() if "value" in card.needs)


def test_a_loss_in_bfloat16_is_a_number() -> None:
    """`value=` of every method that needs it."""
    assert VALUED
    for name in VALUED:
        tx, x = make(CHAINS[name]), jnp.ones((6, 4))
        jax.eval_shape(lambda x, tx=tx: tx.update(x, tx.init(x), x, value=jnp.bfloat16(0.5)), x)


def takes_schedule(card: Card, argument: str) -> bool:
    """Whether an argument may be a schedule, as the message for a string says."""
    if (
        argument != "learning_rate"
        and inspect.signature(card.function).parameters[argument].default is inspect.Parameter.empty
    ):
        return False
    try:
        card.function(**{**arguments(card.name, card.function), argument: "no number"})
    except ValueError as error:
        return argument in str(error) and "or a schedule" in str(error)
    except (AttributeError, TypeError):
        pass
    return False


def test_a_schedule_of_another_shape_is_refused_by_name() -> None:
    """A rate of shape (1,) would give scalar leaves this shape, and the next step would fail."""
    seen, silent = 0, []
    for name, card in CHAINS.items():
        for argument in inspect.signature(card.function).parameters:
            if not takes_schedule(card, argument):
                continue
            try:
                make(card, **{argument: lambda count: 0.5})
            except ValueError:  # not with the other defaults, such as a decay in the joint form of the trust ratio
                continue
            seen += 1
            of_one = {argument: lambda count: jnp.full((1,), 0.5)}
            x = {"a": jnp.ones(()), "k": jnp.ones((6, 4))}
            try:
                tx = make(card, **of_one)
                jax.eval_shape(lambda x, tx=tx: tx.update(x, tx.init(x), x), x)
                silent.append((name, argument, "nothing"))
            except (ValueError, TypeError) as error:
                # The rate of Adam beside a method of matrices is checked as Adam's.
                if argument.removeprefix("adam_") not in str(error) or "of shape (1,)" not in str(error):
                    silent.append((name, argument, str(error)))
    assert not silent, silent
    assert seen > 80


@pytest.mark.parametrize("value", [jnp.array([0.1]), np.array([[0.1]])])
def test_an_array_of_another_shape_is_no_number(value: Any) -> None:
    """Given outright, traced, and injected."""
    with pytest.raises(ValueError, match="learning_rate must be"):
        gk.sgd(value)
    with pytest.raises(ValueError, match=r"learning_rate must be one number, got an array of shape"):
        jax.jit(lambda rate: gk.sgd(rate).init(jnp.ones(2)))(value)
    tx: Any = gk.inject_hyperparams(gk.sgd)(0.1)
    state = tx.init(jnp.ones(()))
    state.hyperparams["learning_rate"] = jnp.asarray(value)
    with pytest.raises(ValueError, match="learning_rate must be"):
        jax.jit(tx.update)(jnp.ones(()), state)


def test_an_injected_schedule_of_another_shape() -> None:
    """`inject_hyperparams` evaluates the schedule itself."""
    tx = gk.inject_hyperparams(gk.adam)(lambda count: jnp.full((1,), 0.1))
    x = jnp.ones(())
    with pytest.raises(ValueError, match="learning_rate must be one number"):
        jax.eval_shape(lambda x: tx.update(x, tx.init(x), x), x)


def test_optax_chains_take_the_links() -> None:
    """A link alone in a chain of optax checks by itself: dtypes, shapes, names."""
    tx = optax.chain(gk.trace(0.5), gk.scale_by_learning_rate(0.1))
    x = {"a": jnp.ones(2, jnp.bfloat16)}
    updates, _ = tx.update(x, tx.init(x), x)
    assert updates["a"].dtype == jnp.bfloat16  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ValueError, match="the gradient of 'a' has shape"):
        tx.update({"a": jnp.ones(3)}, tx.init(x), x)
