"""Step -> value, composed of phases."""

from gradkit.schedules.ademamix import (
    ademamix_alpha_schedule,
    ademamix_b3_schedule,
)
from gradkit.schedules.builders import (
    array_schedule,
    decay,
    hold,
    repeat,
    take,
    warmup,
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
from gradkit.schedules.one_cycle import (
    one_cycle,
    one_cycle_b1,
)
from gradkit.schedules.phases import (
    Phase,
    Schedule,
    phases,
)
from gradkit.schedules.sgdr import (
    sgdr,
    sgdr_boundaries,
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
    "array_schedule",
    "decay",
    "drop_rate_schedule",
    "explore_exploit_schedule",
    "gradual_warmup",
    "heavy_ball_constants",
    "hold",
    "one_cycle",
    "one_cycle_b1",
    "phases",
    "ranger21_schedule",
    "repeat",
    "sgdr",
    "sgdr_boundaries",
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
