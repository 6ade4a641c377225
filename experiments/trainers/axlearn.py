"""AXLearn: `optimizer = config_for_function(gradkit_optimizer).set(learning_rate=..., method="soap")` of a learner.

Plugs into `with_partition_fn(base, partition_fn)` of `axlearn/common/optimizers.py`, which makes the
`PartitionedGradientTransformation(init, update, partition)` that `Learner` (`axlearn/common/learner.py`) wants: `init`
and `update` see the values of its `OptParam`s, and `partition` turns the specifications of all parameters into those of
all leaves of the state. Arguments of the method are set as `arguments={"weight_decay": 0.1}`; in a `chain` it stands
last, behind `clip_by_global_norm`.

The first step of a schedule is 1 there and 0 in optax. Layers of a `Repeat` are stacked in front; they are found by the
names and by what siblings share. `weight_decay_scale` of an `OptParam` is not seen behind `with_partition_fn`: write a
`weight_decay_mask`.
"""

from axlearn.common.optimizer_base import OptStateSpec
from axlearn.common.optimizers import with_partition_fn
from axlearn.common.schedule import as_schedule_fn

import gradkit as gk


def gradkit_optimizer(learning_rate, method, arguments=None):
    schedule = as_schedule_fn(learning_rate)
    tx = getattr(gk, method)(lambda step: schedule(step + 1), **(arguments or {}))

    def spec(shape, dtype, mesh_axes):
        return OptStateSpec(shape=shape, dtype=dtype, mesh_axes=mesh_axes)

    return with_partition_fn(tx, gk.parallel.partition_fn(tx, spec))
