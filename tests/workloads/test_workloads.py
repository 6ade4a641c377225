"""The workloads: what every one of them must be, and what each says it computes."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit import leaves, workloads
from gradkit.aggregation import gramian
from gradkit.diagnostics import conflict_incidence
from gradkit.optimizers.gauss_newton.predictions import linearized
from gradkit.workloads import networks

pytestmark = pytest.mark.slow

KEYS = jax.random.split(jax.random.key(3), 2)


@pytest.mark.parametrize("name", workloads.available())
def test_every_workload_is_a_sound_problem(name):
    problem = workloads.load(name)

    @jax.jit
    def look(key):
        params, batch = problem.init(key), problem.batch(key)
        return params, batch, problem.loss(params, batch), problem.metric(params)

    params, batch, loss, metric = jax.tree.map(lambda *pair: jnp.stack(pair), *map(look, KEYS))
    assert problem.name == name and problem.budget_steps % problem.eval_every == 0
    assert {x.dtype for x in jax.tree.leaves((params, loss, metric))} == {jnp.dtype(jnp.float32)}
    assert loss.shape == metric.shape == (2,)
    assert np.isfinite(loss).all() and (np.asarray(metric) > problem.target).all()
    one = jax.tree.map(lambda x: x[0], (params, batch))
    assert jax.eval_shape(jax.grad(problem.loss), *one) == jax.eval_shape(lambda x: x, one[0])
    same = all(bool((x[0] == x[1]).all()) for x in jax.tree.leaves(batch))
    assert same == (name in ("digits_mlp_full", "sensing", "sensing_1000"))
    if name != "heavytail":  # which starts from zero whatever the key
        assert not all(bool((x[0] == x[1]).all()) for x in jax.tree.leaves(params))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'bytelm'"):
        workloads.load("bytlem")


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    digits = importlib.import_module("gradkit.workloads.digits")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"gradkit\[race\]"):
        digits.load_digits.__wrapped__()


def test_digits_mlp_is_relu_layers_and_cross_entropy():
    problem = workloads.load("digits_mlp_full")
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), problem.init(KEYS[0]))
    images, labels = (np.asarray(x) for x in problem.batch(KEYS[0]))
    x = images.astype(np.float64)
    for i in range(3):
        x = (np.maximum(x, 0) if i else x) @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
    expected = np.mean(np.log(np.exp(x).sum(-1)) - x[np.arange(len(x)), labels])
    found = jax.jit(lambda key: problem.metric(problem.init(key)))(KEYS[0])
    # A float32 mean of 1,437 numbers of order one, each from sums of at most 256 products.
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_kernels_are_drawn_with_the_variance_of_their_inputs_and_stacks_are_separate():
    params = workloads.load("bytelm").init(KEYS[0])
    up = np.asarray(params["ScanBlock_0"]["up"]["kernel"])
    assert up.shape == (2, 64, 256) and not (up[0] == up[1]).all()
    # The standard deviation of n normal draws is known to 1 / sqrt(2 n); five of those.
    for kernel, inputs in ((up, 64), (np.asarray(params["ScanBlock_0"]["down"]["kernel"]), 256)):
        np.testing.assert_allclose(kernel.std() * np.sqrt(inputs), 1, rtol=5 / np.sqrt(2 * kernel.size))
    assert (np.asarray(params["RMSNorm_0"]["scale"]) == 1).all()


def test_scanned_layers_lie_on_a_stack_axis_that_the_layout_sees():
    params = jax.eval_shape(workloads.load("bytelm").init, KEYS[0])
    shapes = zip(leaves.names(params), jax.tree.leaves(params), strict=True)
    roles = {name: leaves.default_layout(name, x.shape) for name, x in shapes}
    scanned = {name: axes for name, axes in roles.items() if name.startswith("ScanBlock_0/")}
    assert len(scanned) == 8 and all(axes.stack == (0,) for axes in scanned.values())
    assert roles["tokens/embedding"].role == "embedding" and roles["head/kernel"].role == "head"


def test_the_language_model_never_looks_ahead():
    bytelm = importlib.import_module("gradkit.workloads.bytelm")
    text = bytelm.load_text()
    network = bytelm.ByteLM(text.vocabulary)
    params = {"params": workloads.load("bytelm").init(KEYS[0])}
    tokens = text.train[None, : bytelm.CONTEXT]
    changed = tokens.at[0, 20].set((tokens[0, 20] + 1) % text.vocabulary)
    apply = jax.jit(network.apply)
    before, after = apply(params, tokens)[0], apply(params, changed)[0]
    assert (before[:20] == after[:20]).all() and not (before[20:] == after[20:]).all(1).any()


def test_the_vocabulary_is_that_of_the_text():
    from pydoc_data import topics

    text = importlib.import_module("gradkit.workloads.bytelm").load_text()
    joined = "\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    assert text.vocabulary == len(set(joined))
    assert len(text.train) + len(text.held_out) == len(joined)
    assert int(jnp.maximum(text.train.max(), text.held_out.max())) == text.vocabulary - 1


def test_two_tasks_add_up_to_the_loss_and_the_metric_is_the_worse_unscaled_one():
    problem = workloads.load("multitask")
    assert problem.losses is not None
    params, batch = problem.init(KEYS[0]), problem.batch(KEYS[0])
    losses, loss = jax.jit(problem.losses), jax.jit(problem.loss)
    both = losses(params, batch)
    assert both.shape == (2,)
    np.testing.assert_allclose(both.sum(), loss(params, batch), rtol=1e-6)
    everything = importlib.import_module("gradkit.workloads.digits").load_digits()[:2]
    first, second = (float(x) for x in losses(params, everything))
    np.testing.assert_allclose(jax.jit(problem.metric)(params), max(first, second / 10), rtol=1e-6)


def test_six_tasks_conflict_and_the_metric_is_the_worst_relative_loss():
    """Losses of a constant prediction are those of a network whose heads give the best constants."""
    six = importlib.import_module("gradkit.workloads.multitask_six")
    problem, data = workloads.load("multitask_six"), importlib.import_module("gradkit.workloads.digits").load_digits()
    assert problem.losses is not None and problem.num_tasks == 6 and workloads.load("digits_mlp").num_tasks == 1
    params, batch = problem.init(KEYS[0]), problem.batch(KEYS[0])
    losses = jax.jit(problem.losses)
    np.testing.assert_allclose(losses(params, batch).sum(), jax.jit(problem.loss)(params, batch), rtol=1e-6)
    trivial = six.constant_losses(np.asarray(data.train_images), np.asarray(data.train_labels))
    everything = np.asarray(losses(params, data[:2])) / np.asarray(six.SCALES)
    np.testing.assert_allclose(jax.jit(problem.metric)(params), (everything / trivial).max(), rtol=1e-5)

    blank = jax.tree.map(jnp.zeros_like, params)
    p = np.bincount(np.asarray(data.train_labels)) / len(data.train_labels)
    blank["digit"]["bias"] = blank["mirrored"]["bias"] = jnp.asarray(np.log(p), jnp.float32)
    blank["image"]["bias"] = jnp.mean(data.train_images, axis=0)
    best = np.asarray(losses(blank, data[:2])) / np.asarray(six.SCALES)
    np.testing.assert_allclose(best[[0, 4, 5]], trivial[[0, 4, 5]], rtol=1e-5)

    def trunk(seed):
        key = jax.random.key(seed)
        return jax.jacrev(lambda x: problem.losses(x, problem.batch(key)))(problem.init(key))["trunk"]

    stacks = jax.jit(jax.vmap(trunk))(jnp.arange(8, dtype=jnp.uint32))
    grams = jax.vmap(gramian)(stacks)
    # A third of the pairs, of which eight seeds have 120; without conflicts there were none.
    assert 0.15 < float(jnp.mean(conflict_incidence(grams))) < 0.6


def test_the_flow_goes_from_noise_to_images_and_is_judged_at_times_that_are_spread_evenly():
    flow = importlib.import_module("gradkit.workloads.digits_flow")
    problem = workloads.load("digits_flow")
    images, noise, time = (np.asarray(x) for x in problem.batch(KEYS[0]))
    assert images.shape == noise.shape == (128, 64) and (images.min(), images.max()) == (-1, 1)
    assert time.min() >= 0 and time.max() < 1
    # A mean of 8,192 normal draws has a deviation of 0.011, their deviation one of 0.008; five of those.
    assert abs(noise.mean()) < 0.055 and abs(noise.std() - 1) < 0.04
    point = np.asarray(flow.flow_inputs(*map(jnp.asarray, (images, noise, time))))
    np.testing.assert_allclose(point[:, :64], noise + time[:, None] * (images - noise), rtol=0, atol=1e-6)
    angles = np.pi * time[:, None] * np.arange(1, 5)
    np.testing.assert_allclose(point[:, 64:], np.concatenate([np.cos(angles), np.sin(angles)], 1), rtol=0, atol=1e-5)

    held_out = flow._held_out(np.zeros((90, 64)))
    np.testing.assert_allclose(np.sort(held_out[2]), (np.arange(360) + 0.5) / 360, rtol=1e-6)
    # A velocity of zero: the error is that of the targets themselves, images minus noise.
    zero = jax.tree.map(jnp.zeros_like, problem.init(KEYS[0]))
    test_images = 2 * np.asarray(importlib.import_module("gradkit.workloads.digits").load_digits().test_images) - 1
    images, noise, _ = (np.asarray(x, np.float64) for x in flow._held_out(test_images))
    np.testing.assert_allclose(problem.metric(zero), np.mean((images - noise) ** 2), rtol=1e-5)


def test_augmented_images_are_mirrored_and_shifted_and_nothing_else():
    shapes = importlib.import_module("gradkit.workloads.shapes")
    n = 400
    # Different numbers: where a pixel comes from can be read off it.
    images = np.arange(n * 256, dtype=np.float32).reshape(n, 16, 16)
    moved = np.asarray(jax.jit(shapes.augment)(KEYS[0], jnp.asarray(images)))
    ways = [(dy, dx, step) for dy in range(-2, 3) for dx in range(-2, 3) for step in (1, -1)]
    found = [
        [way for way in ways if (np.roll(image, way[:2], (0, 1))[:, :: way[2]] == made).all()]
        for image, made in zip(images, moved, strict=True)
    ]
    assert all(len(own) == 1 for own in found)
    # Each of the fifty is missed by 400 draws with a chance of 3e-4, and the key is fixed.
    assert {own[0] for own in found} == set(ways)


def test_the_classes_of_shapes_are_equally_frequent_and_halves_differ():
    shapes = importlib.import_module("gradkit.workloads.shapes")
    data = shapes.make_shapes()
    for images, labels in (data[:2], data[2:]):
        assert images.shape == (1000, 16, 16) and np.bincount(labels).tolist() == [125] * 8
    assert not (data.train_images == data.held_out_images).any()


def test_matrix_completion_is_solved_by_the_truth():
    problem = workloads.load("sensing")
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((60, 3)))[0] for _ in range(2))
    params = {"u": left * np.geomspace(1, 0.01, 3) * 60, "v": right}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    assert float(problem.metric(params)) < 1e-6 and float(problem.loss(params, problem.batch(KEYS[0]))) < 1e-10


def test_matrix_sensing_is_solved_by_the_truth():
    """Condition 1000: without its smallest singular value the matrix is ten times as far away as the target allows."""
    problem = workloads.load("sensing_1000")
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((30, 3)))[0] for _ in range(2))
    for values, error in ((np.geomspace(1, 1e-3, 3), 0.0), (np.array([1, 1e-1**1.5, 0]), 1e-3)):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"u": left * values, "v": right})
        np.testing.assert_allclose(problem.metric(params), error, rtol=1e-3, atol=1e-6)
    assert problem.target == 1e-4


def test_principal_components_solve_the_linear_autoencoder():
    problem = workloads.load("linear_autoencoder")
    images = np.asarray(importlib.import_module("gradkit.workloads.digits").load_digits().train_images, np.float64)
    mean = images.mean(0)
    values, directions = np.linalg.svd(images - mean, full_matrices=False)[1:]
    V = directions[:32].T
    kernels = [np.eye(64), V, np.eye(32, 8), np.eye(8, 32), V.T, np.eye(64)]
    params = {f"Dense_{i}": {"kernel": k, "bias": np.zeros(k.shape[1])} for i, k in enumerate(kernels)}
    params["Dense_0"]["bias"], params["Dense_5"]["bias"] = -mean, mean
    least = np.sum(values[8:] ** 2) / len(images)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    np.testing.assert_allclose(problem.metric(params), least, rtol=1e-4)
    assert least < problem.target < 1.02 * least


@pytest.mark.parametrize(
    "name, factor",
    [
        *(("digits_mlp", 1), ("digits_cnn", 1), ("bytelm", 1), ("shapes", 1), ("autoencoder", 2)),
        *(("digits_flow", 2 / 64), ("sensing", 1), ("sensing_1000", 600)),
    ],
)
def test_the_loss_is_that_of_the_predictions(name, factor):
    problem = workloads.load(name)
    params, batch = problem.init(KEYS[0]), problem.batch(KEYS[1])
    assert problem.predictions is not None
    model_fn, targets = problem.predictions(batch)
    kind = "softmax_ce" if jnp.issubdtype(targets.dtype, jnp.integer) else "mse"

    @jax.jit
    def both(params):
        extra = {"model_fn": model_fn, "targets": targets}
        slope = linearized("the workload", kind, params, extra)
        assert slope.loss is not None
        gradient = jax.tree.map(lambda x: -factor / len(targets) * x, slope.vjp(slope.residual))
        return jax.value_and_grad(problem.loss)(params, batch), (factor * slope.loss(params), gradient)

    (loss, gradient), (want, slopes) = both(params)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    # Sums of float32 in another order, of as many terms as a batch has outputs.
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(slopes))
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * size)


def test_indices_cover_the_range_and_nothing_else():
    drawn = np.asarray(networks.indices(KEYS[0], 5000, 7))
    counts = np.bincount(drawn, minlength=7)
    # A count is binomial with mean 714 and deviation 24.7; five of those.
    assert len(counts) == 7 and abs(counts - 5000 / 7).max() < 5 * 24.8
