"""AXLearn: `optimizer = config_for_function(gradkit_optimizer).set(method="soap", learning_rate=...)` of a learner.

Plugs into `with_partition_fn(base, partition_fn)` of `axlearn/common/optimizers.py`, which makes the
`PartitionedGradientTransformation(init, update, partition)` that `Learner` (`axlearn/common/learner.py`) wants: `init`
and `update` see the values of its `OptParam`s, and `partition` turns the specifications of all parameters into those of
all leaves of the state.

The first step of a schedule is 1 there and 0 in optax. Layers of a `Repeat` are stacked in front; they are found by the
names and by what siblings share.
"""

from axlearn.common.optimizer_base import OptStateSpec
from axlearn.common.optimizers import with_partition_fn
from axlearn.common.schedule import as_schedule_fn

import gradkit as gk


def gradkit_optimizer(learning_rate, *, method, **arguments):
    schedule = as_schedule_fn(learning_rate)
    tx = getattr(gk, method)(lambda step: schedule(step + 1), **arguments)

    def spec(shape, dtype, mesh_axes):
        return OptStateSpec(shape=shape, dtype=dtype, mesh_axes=mesh_axes)

    return with_partition_fn(tx, gk.parallel.partition_fn(tx, spec))
