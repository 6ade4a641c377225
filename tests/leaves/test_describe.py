"""`describe` sees through every wrapper, and its bytes are those of the state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradkit as gk
from gradkit.catalogue import Card
from gradkit.leaves import by_path, describe, everything, groups
from tests.contract.methods import METHODS, make

PARAMS = {
    "embed": {"embedding": jax.ShapeDtypeStruct((32, 8), np.float32)},
    "dense": {
        "bias": jax.ShapeDtypeStruct((8,), np.float32),
        "kernel": jax.ShapeDtypeStruct((8, 8), np.float32),
    },
}
KERNEL, BIAS, EMBEDDING = "dense/kernel", "dense/bias", "embed/embedding"


def said(tx: optax.GradientTransformation, params: Any = PARAMS) -> dict[str, tuple[str, str, str]]:
    """Method, rate and decay by name."""
    return {row.name: (row.method, row.rate, row.decay) for row in describe(tx, params).rows}


LION = gk.lion(1e-3, weight_decay=0.1, weight_decay_mask=by_path(".*kernel"))
DECAYED, PLAIN = ("lion", "0.001", "0.1"), ("lion", "0.001", "-")


@pytest.mark.parametrize(
    "wrapped",
    [
        LION,
        optax.chain(LION),
        optax.named_chain(("first", LION)),
        optax.masked(LION, True),
        optax.partition({"all": LION}, lambda tree: jax.tree.map(lambda _: "all", tree)),
        optax.MultiSteps(LION, 2).gradient_transformation(),
        optax.apply_if_finite(LION, 3),
        groups([(everything(), LION)]),
        optax.chain(optax.identity(), optax.chain(optax.MultiSteps(LION, 4).gradient_transformation())),
    ],
    ids=["bare", "chain", "named_chain", "masked", "partition", "MultiSteps", "apply_if_finite", "groups", "nested"],
)
def test_no_wrapper_hides_a_method(wrapped: optax.GradientTransformation) -> None:
    assert said(wrapped) == {KERNEL: DECAYED, BIAS: PLAIN, EMBEDDING: PLAIN}


def test_links_follow_one_another() -> None:
    tx = optax.chain(gk.clip_by_global_norm(1.0), gk.scale_by_adam(), gk.scale_by_learning_rate(0.5))
    assert said(tx)[BIAS] == ("clip_by_global_norm + scale_by_adam + scale_by_learning_rate", "0.5", "-")


def test_wrappers_of_this_library_are_named_around_what_they_wrap() -> None:
    got = said(gk.precision(gk.muon(0.02, adam_learning_rate=1e-3, weight_decay=0.1), state="bfloat16"))
    assert got[KERNEL] == ("precision(muon)", "0.02", "0.1")
    assert got[BIAS] == got[EMBEDDING] == ("precision(adamw)", "0.001", "0")


def test_every_leaf_is_told_the_member_it_is_given_to() -> None:
    tx = groups(
        [(by_path(".*bias"), gk.sgd(1.0)), (by_path("embed/.*"), optax.set_to_zero())],
        default=optax.chain(gk.clip_by_global_norm(1.0), gk.muon(0.02, adam_learning_rate=0.02)),
    )
    got = said(tx)
    assert got[KERNEL] == ("clip_by_global_norm + muon", "0.02", "0")
    assert got[BIAS] == ("sgd", "1", "0")
    assert "muon" not in got[EMBEDDING][0]
    # No matrix at all: the name of the whole is not printed for what is given to the other member.
    assert said(gk.muon(0.02, adam_learning_rate=0.02), {"bias": PARAMS["dense"]["bias"]})["bias"][0] == "adamw"


def test_links_of_optax_are_named_after_their_states() -> None:
    got = said(optax.chain(gk.clip_by_global_norm(1.0), optax.adamw(1e-3)))
    assert got[BIAS][0] == "clip_by_global_norm + scale_by_adam"
    tx = optax.partition(
        {"a": optax.adam(0.1), "b": LION},
        {"dense": {"bias": "a", "kernel": "b"}, "embed": {"embedding": "a"}},
    )
    assert {name: row[0] for name, row in said(tx).items()} == {
        KERNEL: "lion",
        BIAS: "scale_by_adam",
        EMBEDDING: "scale_by_adam",
    }


class Network(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(32, 8, rngs=rngs)
        self.dense, self.dropout = nnx.Linear(8, 8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)


@pytest.mark.parametrize("name", ["muon", "soap", "novograd", "lamb"])
def test_a_module_of_nnx_is_described_as_its_parameters(name: str) -> None:
    """What boxes the state in Variables hides no link, and makes none of another library's out of it."""
    model, tx = Network(), getattr(gk, name)(0.1, **({"adam_learning_rate": 0.01} if name == "muon" else {}))
    want = describe(tx, PARAMS)
    assert want.rows == describe(tx, nnx.state(model, nnx.Param)).rows == describe(tx, model).rows
    behind = describe(optax.chain(tx, optax.trace(0.9)), model).rows
    assert [row.method for row in behind] == [f"{row.method} + trace" for row in want.rows]


def test_what_is_no_transformation_is_refused_with_what_to_write() -> None:
    params = {"kernel": np.zeros((2, 2), np.float32)}
    for given, message in (
        (("muon", params), r"got the name 'muon'; write describe\(gk\.muon\(1e-3\), params\)"),
        ((params, gk.muon(0.1)), "tx comes first"),
        ((gk.muon, params), "tx must be an optax transformation.*call it"),
        ((gk.muon(0.1), gk.muon(0.1)), "params must be parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            describe(*given)


def test_values_that_are_not_numbers() -> None:
    assert said(gk.adam(optax.constant_schedule(0.1)))[BIAS][1] == "schedule"
    assert said(gk.inject_hyperparams(gk.lion)(0.1))[BIAS][:2] == ("lion", "traced")
    assert said(optax.inject_hyperparams(gk.lion)(0.1))[BIAS][0] == "lion"


@pytest.mark.parametrize("card", METHODS.values(), ids=METHODS)
def test_bytes_are_those_of_the_state(card: Card) -> None:
    """Of every method, bare and with its state in int8; and it knows whose most of them are."""
    for tx in (make(card), gk.precision(make(card), state="int8-block")):
        said = describe(tx, PARAMS)
        sizes = [
            x.size * (8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize)
            for x in jax.tree.leaves(jax.eval_shape(tx.init, PARAMS))
        ]
        assert sum(row.state_bytes for row in said.rows) + said.shared_bytes == sum(sizes)
        if card.words >= 1:
            assert all(row.state_bytes > 0 for row in said.rows if row.name == KERNEL), said


def test_state_that_is_kept_in_stacks_belongs_to_parameters() -> None:
    """SOAP: two moments, and per rotated axis a statistic and a basis."""
    rows = {row.name: row.state_bytes for row in describe(gk.soap(0.1), PARAMS).rows}
    words = {KERNEL: 2 * 64 + 4 * 64, BIAS: 2 * 8, EMBEDDING: 2 * 256 + 2 * (32**2 + 8**2)}
    assert {name: size // 4 for name, size in rows.items()} == words
