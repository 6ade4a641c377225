"""`gradkit train --replicas`: on one device and on a mesh, killed and gone on, at the mean, and what it refuses."""

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.cli import main
from gradkit.parallel import streaming_diloco
from gradkit.training import TrainConfig, run, strategies, train
from gradkit.training.flags import parse
from gradkit.training.train import start
from gradkit.transforms import eval_params
from gradkit.workloads import load

F32 = 1e-5  # 6 steps of a few dozen roundings of float32 each, of numbers of size 1


def config(**changes: Any) -> TrainConfig:
    same = {"workload": "heavytail", "method": "momentum", "steps": 6, "eval_every": 3, "replicas": 4, "sync": "diloco"}
    return TrainConfig(**{**same, "sync_every": 4, "exchange": "top_k", **changes})


def rows(records: Any) -> list[dict[str, Any]]:
    """Records without the time that they took."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: pathlib.Path) -> None:
    """Step 3 is in the middle of a round, and at step 6 every replica remembers something else that it did not send."""
    whole, parts = config(checkpoint_dir=str(tmp_path / "whole")), config(checkpoint_dir=str(tmp_path / "parts"))
    want = rows(train(whole))
    running = train(parts)
    got = rows([next(running)])
    running.close()
    assert rows(train(parts)) == want[1:] and got == want[:1]
    a, b = start(whole).state, start(parts).state
    for x, y in zip(jax.tree.leaves((a.params, a.opt_state)), jax.tree.leaves((b.params, b.opt_state)), strict=True):
        np.testing.assert_array_equal(x, y)
    memory = np.asarray(jax.tree.leaves(a.opt_state.exchange.error)[0])
    assert memory.shape[0] == 4 and np.ptp(memory, axis=0).max() > 0


@pytest.mark.parametrize(("replicas", "mesh"), [(2, None), (8, "replica=8")])
def test_another_number_of_replicas_goes_on_at_the_mean(
    replicas: int, mesh: str | None, tmp_path: pathlib.Path
) -> None:
    """Step 3 is in the middle of a round: parameters and what was not sent differ between replicas, and their means
    stay; what all have in common stays to the bit. The run that goes on is as resumable as any other."""
    folder = str(tmp_path)
    next(running := train(config(checkpoint_dir=folder, global_batch=32)))
    running.close()
    old = start(config(checkpoint_dir=folder, global_batch=32)).state
    other = config(checkpoint_dir=folder, global_batch=32, replicas=replicas, mesh=mesh)
    started = start(other)
    new = started.state
    assert started.plan.problem.batch_size == 32 // replicas and int(new.step) == 3
    assert np.ptp(np.asarray(jax.tree.leaves(old.params)[0]), axis=0).max() > 1e-3
    for x, y in zip(*(jax.tree.leaves((each.params, each.opt_state)) for each in (old, new)), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert y.shape == (replicas, *x.shape[1:]) and x.dtype == y.dtype
        assert (y == y[:1]).all()
        if (x == x[:1]).all():
            np.testing.assert_array_equal(x[0], y[0])
        else:  # a sum of four numbers, in any order, and the quotient: four roundings of the largest
            bound = 4 * 2**-24 * np.abs(x).max()
            np.testing.assert_allclose(y[0], np.mean(x, axis=0, dtype=np.float64), rtol=0, atol=bound)
    if mesh is not None:
        assert all(x.sharding.spec[0] == "replica" for x in jax.tree.leaves((new.params, new.opt_state)))
        return
    for name, given in (("sync", {"sync": "streaming_diloco"}), ("sync_every", {"sync_every": 3})):
        with pytest.raises(ValueError, match=f"of another run: {name} is"):
            start(config(checkpoint_dir=folder, replicas=2, **given))
    (record,) = rows(train(other))
    later = start(other).state
    assert record["step"] == 6 and np.asarray(jax.tree.leaves(later.params)[0]).shape[0] == replicas


def test_on_a_mesh_as_on_one_device(tmp_path: pathlib.Path) -> None:
    """The same numbers; every replica on devices of its own; what the compressor packs travels, in a branch alone."""
    here = config(exchange="int8", sync_every=2, global_batch=32, checkpoint_dir=str(tmp_path / "here"))
    there = config(
        exchange="int8", sync_every=2, global_batch=32, checkpoint_dir=str(tmp_path / "there"), mesh="replica=4,data=2"
    )
    for a, b in zip(rows(train(here)), rows(train(there)), strict=True):
        # An int8 rounding that falls the other way is remembered, and sent in the next round.
        assert a.keys() == b.keys() and a["metric"] == pytest.approx(b["metric"], rel=1e-2)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-2)
    started = start(there)
    for x in jax.tree.leaves((started.state.params, started.state.opt_state)):
        assert x.sharding.spec[0] == "replica"
    # A round of two steps has just ended, and here and there all replicas are at one point.
    for x in jax.tree.leaves((start(here).state.params, started.state.params)):
        assert np.ptp(np.asarray(x), axis=0).max() <= F32
    assert started.plan.problem.batch_size == 8
    step = strategies.step_function(
        started.plan.problem, started.plan.tx, replicas=4, mesh=started.mesh, sync_every=2, microbatches=1,
        place=started.place,
    )  # fmt: skip
    with jax.set_mesh(started.mesh):
        text = jax.jit(step).lower(started.state).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    assert " conditional(" in entry and not re.search(r" (all-to-all|all-gather)\(", entry)
    assert re.search(r"s8\[[^=]* all-to-all\(", text[: text.index("\nENTRY")])


def test_the_metric_is_read_at_the_mean_of_what_the_replicas_evaluate(tmp_path: pathlib.Path) -> None:
    wanted = config(method="schedule_free_sgd", exchange=None, sync="local", steps=3, checkpoint_dir=str(tmp_path))
    (record,) = train(wanted)
    state = start(wanted).state
    points = [
        eval_params(*jax.tree.map(lambda x, i=i: np.asarray(x)[i], (state.opt_state, state.params))) for i in range(4)
    ]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0, dtype=np.float64).astype(np.float32), *points)
    for p, m in zip(jax.tree.leaves(state.params), jax.tree.leaves(mean), strict=True):
        assert np.ptp(np.asarray(p), axis=0).max() > 1e-4 and np.abs(np.asarray(p).mean(0) - m).max() > 1e-4
    metric: Any = load("heavytail").metric
    assert record["metric"] == pytest.approx(float(jax.jit(metric)(mean)), rel=F32)


def test_without_a_strategy_the_gradients_of_all_minibatches_are_averaged(tmp_path: pathlib.Path) -> None:
    """The one step of SGD that NumPy makes from the gradients at the replicas' minibatches."""
    only = config(
        method="sgd", sync=None, sync_every=None, exchange=None, schedule="constant", learning_rate=0.5, steps=1,
        eval_every=1, replicas=2, checkpoint_dir=str(tmp_path),
    )  # fmt: skip
    (record,) = train(only)
    problem: Any = load("heavytail")
    seed = np.uint32(0)

    def expected() -> Any:
        params = run.first_params(problem, seed)
        keys = [jax.random.fold_in(jax.random.fold_in(run.first_key(seed), i), 0) for i in range(2)]
        return params, [jax.value_and_grad(problem.loss)(params, problem.batch(key)) for key in keys]

    params, ((loss_a, a), (loss_b, b)) = jax.jit(expected)()
    assert float(loss_a) != float(loss_b)
    assert record["loss"] == pytest.approx((float(loss_a) + float(loss_b)) / 2, rel=F32)
    for x, p, g, h in zip(*map(jax.tree.leaves, (start(only).state.params, params, a, b)), strict=True):
        want = np.asarray(p) - 0.5 * (np.asarray(g) + np.asarray(h)) / 2
        np.testing.assert_allclose(x, np.broadcast_to(want, x.shape), rtol=F32, atol=F32)


@pytest.mark.parametrize("sync", strategies.offered())
def test_every_strategy_that_is_offered_makes_a_step(sync: str) -> None:
    """State and parameters keep their form; traced, which is where an argument that is missing shows."""
    has = {name for name in ("sync_every", "exchange") if name in strategies.arguments(sync)}
    given = {"sync_every": 2 if "sync_every" in has else None, "exchange": "sign" if "exchange" in has else None}
    wanted = config(sync=sync, method=None, replicas=2, **given)
    started = start(wanted)
    step = strategies.step_function(
        started.plan.problem, started.plan.tx, replicas=2, mesh=started.mesh,
        sync_every=strategies.period(wanted), microbatches=1, place=started.place,
    )  # fmt: skip
    with jax.set_mesh(started.mesh):
        state, losses = jax.eval_shape(step, started.state)
    assert losses.shape == (2,)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), started.state
    )


@pytest.mark.parametrize("exchange", strategies.EXCHANGES)
def test_what_a_biased_exchange_does_not_send_is_remembered(exchange: str) -> None:
    tx = strategies.around(config(exchange=exchange), optax.sgd(0.1))
    state = jax.eval_shape(tx.init, {"w": jax.ShapeDtypeStruct((8, 8), "float32")})
    memory = [x.shape for x in jax.tree.leaves(getattr(state.exchange, "error", ()))]
    assert memory == ([] if exchange in ("mean", "ternary") else [(8, 8)])


REFUSED = {
    "sync is of replicas": {"replicas": None, "sync_every": None, "exchange": None},
    "sync_every is of replicas": {"replicas": None, "sync": None, "exchange": None},
    "exchange is of replicas": {"replicas": None, "sync": None, "sync_every": None},
    "replicas must be": {"replicas": 0},
    r"sync must be .*'diloco'.*did you mean 'diloco'": {"sync": "dilocco"},
    r"exchange must be .*'top_k'.*'sign'": {"exchange": "int3"},
    "sync_every must be an integer >= 1": {"sync_every": 0},
    "sync_every is the length of a round of a strategy: give sync": {"sync": None},
    "sync_every must be given with sync='local'": {"sync": "local", "sync_every": None},
    "sync_every must be left out with sync='dproxsgt'": {"sync": "dproxsgt", "method": None, "exchange": None},
    "exchange must be left out with sync='dilocox'.*streaming_diloco": {"sync": "dilocox"},
    "method and chain must be left out with sync='savic'": {"sync": "savic", "exchange": None},
    "aggregator must be left out with replicas": {"aggregator": "upgrad"},
    "max_batch must be left out with replicas": {"microbatch": 8, "max_batch": 64},
    "outer_momentum is of replicas": {
        "replicas": None,
        "sync": None,
        "sync_every": None,
        "exchange": None,
        "outer_momentum": 0.5,
    },
    "delay must be left out with sync='diloco', which has none; it is for sync=streaming_diloco": {"delay": 1},
    "outer_momentum must be left out without sync; it is for sync=diloco, dilocox, streaming_diloco": {
        "sync": None,
        "sync_every": None,
        "outer_momentum": 0.5,
    },
    "mixing must be left out with sync='dproxsgt'": {
        "sync": "dproxsgt",
        "sync_every": None,
        "exchange": None,
        "method": None,
        "mixing": 0.5,
    },
    r"mixing must be .*\[0, 1\], got 1.5": {"sync": "streaming_diloco", "mixing": 1.5},
    r"outer_learning_rate must be .*\[0, inf\).*, got -1": {"outer_learning_rate": -1.0},
    r"outer_momentum must be .*\[0, 1\], got 2": {"outer_momentum": 2.0},
    "fragments must be an integer >= 1, got 0": {"sync": "streaming_diloco", "fragments": 0},
    "sync_every must be a multiple of the 3 fragments, got 4; write 6": {"sync": "streaming_diloco", "fragments": 3},
    "delay must be below sync_every / fragments = 2, got 2": {"sync": "streaming_diloco", "fragments": 2, "delay": 2},
    "global_batch must be a multiple of replicas=4": {"global_batch": 30},
    "devices must be a multiple of replicas=4": {"devices": 6},
    "the axis replica of mesh must have the length replicas=4": {"mesh": "replica=2,data=2"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_flag_in_the_wrong_place_is_named_with_what_is_allowed(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**REFUSED[message])


def test_the_numbers_of_a_strategy_are_those_of_the_flags() -> None:
    """What trains is the strategy with these arguments: the same updates, in every step of two rounds."""
    given: dict[str, Any] = {
        "outer_learning_rate": 0.5,
        "outer_momentum": 0.75,
        "fragments": 2,
        "delay": 1,
        "mixing": 0.25,
    }
    flags = [f"--{name}={value}" for name, value in given.items()]
    wanted = parse(TrainConfig, ["--replicas=2", "--sync=streaming_diloco", "--sync_every=4", *flags])
    assert all(getattr(wanted, name) == value for name, value in given.items())
    assert strategies.described(wanted).endswith("delay=1, mixing=0.25")
    params = {"a": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.ones((2, 2), np.float32)}

    def path(tx: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            x, state = carry
            scale = jnp.where(jax.lax.axis_index("replica") == 0, 1.0, 2.0)
            grads = jax.tree.map(lambda x: scale * x, x)
            u, state = tx.update(grads, state, x)
            x = optax.apply_updates(x, u)
            return (x, state), x

        return jax.jit(jax.vmap(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, 8)[1], axis_name="replica"))(params)

    own, plain = (streaming_diloco(optax.sgd(0.1), sync_every=4, **numbers) for numbers in (given, {}))
    paths = map(path, (strategies.around(wanted, optax.sgd(0.1)), own, plain))
    for x, y, z in zip(*map(jax.tree.leaves, paths), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.abs(np.asarray(x) - z).max() > 1e-3


def test_a_mesh_of_another_number_of_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match="the axis replica of mesh must have the length replicas=4, got 8"):
        start(config(mesh="replica=-1"))


def test_the_command_says_who_trains(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--workload=heavytail",
        "--replicas=2",
        "--sync=local",
        "--sync_every=2",
        "--steps=2",
        "--eval_every=2",
    ]
    assert main(["gradkit", "train", *arguments]) == 0
    assert "2 replicas of adamw, sync=local, sync_every=2 on linear regression" in capsys.readouterr().out
    assert main(["gradkit", "train", "--exchange=int8"]) == 2
    assert "give replicas as well" in capsys.readouterr().err
