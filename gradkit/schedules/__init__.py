"""Step -> value, composed of phases."""

from gradkit.schedules.ademamix import (
    ademamix_alpha_schedule,
    ademamix_b3_schedule,
)
from gradkit.schedules.array_schedule import (
    array_schedule,
)
from gradkit.schedules.autosparse import (
    sigmoid_cosine_decay,
)
from gradkit.schedules.balanced_ema_rate import (
    balanced_ema_rate,
)
from gradkit.schedules.builders import (
    decay,
    hold,
    repeat,
    take,
    warmup,
)
from gradkit.schedules.cooldown import (
    cooldown,
)
from gradkit.schedules.decay_to_constant import (
    decay_to_constant,
)
from gradkit.schedules.drop_rate import (
    drop_rate_schedule,
)
from gradkit.schedules.explore_exploit import (
    explore_exploit_schedule,
    ranger21_schedule,
    untuned_linear_warmup,
)
from gradkit.schedules.gradual_warmup import (
    gradual_warmup,
)
from gradkit.schedules.heavy_ball import (
    HeavyBallConstants,
    heavy_ball_constants,
    stage_decay_schedule,
)
from gradkit.schedules.infinite import (
    anneal_branch,
    infinite_schedule,
)
from gradkit.schedules.one_cycle import (
    one_cycle,
    one_cycle_b1,
)
from gradkit.schedules.phases import (
    Phase,
    Schedule,
    phases,
)
from gradkit.schedules.plot import (
    plot,
)
from gradkit.schedules.power import (
    power_schedule,
)
from gradkit.schedules.range_test import (
    lr_range_test,
)
from gradkit.schedules.refined import (
    linear_decay,
    refined_schedule,
)
from gradkit.schedules.reste import (
    reste_power,
)
from gradkit.schedules.rex import rex
from gradkit.schedules.sgdr import (
    sgdr,
    sgdr_boundaries,
)
from gradkit.schedules.shrink_rate import (
    shrink_rate_schedule,
)
from gradkit.schedules.tvlars import (
    tvlars_schedule,
)
from gradkit.schedules.warmup_polynomial import (
    warmup_polynomial_schedule,
)
from gradkit.schedules.wsd import (
    wsd,
    wsd_cooldown,
    wsd_cycles,
)

__all__ = [
    "HeavyBallConstants",
    "Phase",
    "Schedule",
    "ademamix_alpha_schedule",
    "ademamix_b3_schedule",
    "anneal_branch",
    "array_schedule",
    "balanced_ema_rate",
    "cooldown",
    "decay",
    "decay_to_constant",
    "drop_rate_schedule",
    "explore_exploit_schedule",
    "gradual_warmup",
    "heavy_ball_constants",
    "hold",
    "infinite_schedule",
    "linear_decay",
    "lr_range_test",
    "one_cycle",
    "one_cycle_b1",
    "phases",
    "plot",
    "power_schedule",
    "ranger21_schedule",
    "refined_schedule",
    "repeat",
    "reste_power",
    "rex",
    "sgdr",
    "sgdr_boundaries",
    "shrink_rate_schedule",
    "sigmoid_cosine_decay",
    "stage_decay_schedule",
    "take",
    "tvlars_schedule",
    "untuned_linear_warmup",
    "warmup",
    "warmup_polynomial_schedule",
    "wsd",
    "wsd_cooldown",
    "wsd_cycles",
]
