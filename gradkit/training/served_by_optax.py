"""Methods that optax has: which of them this library has compared with their papers, and what it found.

What is right there is used, and not written again: it races (`optax.radam`), is inspected, described and shown under
the name that it has in optax. What a test compared, and what none did, is on its card.
"""

from typing import NamedTuple

from gradkit.catalogue import Paper


class Served(NamedTuple):
    """What is known of one method of optax.

    Attributes:
      paper: where it comes from.
      words: of state per parameter.
      checked: what a test compares.
      unchecked: what no test does; or which method of this library to take instead, and why.
      rate: the middle of its grid of learning rates. None: it finds its step itself.
    """

    paper: Paper
    words: float
    checked: str
    unchecked: str
    rate: float | None = None


# The paper of whatever has no entry below.
OPTAX = Paper("The DeepMind JAX Ecosystem", "Babuschkin et al.", 2020)
SERVED: dict[str, Served] = {
    "optax.adabelief": Served(
        Paper(
            "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
            "Zhuang et al.",
            2020,
            "2010.07468",
        ),
        2,
        "the trajectory against its equations in NumPy: the second moment is of g - m with the new m, eps_root is "
        "added to it at every step and stays in it, as the paper's eps is, and eps outside of the root",
        "nesterov, moments in bfloat16 (they take the dtype of the parameters), complex leaves",
        5e-3,
    ),
    "optax.radam": Served(
        Paper("On the Variance of the Adaptive Learning Rate and Beyond", "Liu et al.", 2019, "1908.03265"),
        2,
        "the trajectory against its equations in NumPy, before and after the variance is tractable: rho_t >= "
        "threshold, 5 by default, where the paper has rho_t > 4 (give threshold=4) and torch rho_t > 5",
        "nesterov, moments in bfloat16 (they take the dtype of the parameters), complex leaves",
        5e-3,
    ),
    "optax.yogi": Served(
        Paper("Adaptive Methods for Nonconvex Optimization", "Zaheer et al.", 2018),
        2,
        "the trajectory against its equations in NumPy: both moments start at 1e-6, the first one too, which gives a "
        "gradient of zeros a small step, and are corrected as if they had started at 0",
        "moments in bfloat16 (they take the dtype of the parameters), complex leaves",
        1e-2,
    ),
    "optax.lbfgs": Served(
        Paper("On the Limited Memory BFGS Method for Large Scale Optimization", "Liu, Nocedal", 1989),
        23,
        "the direction against the product with the dense BFGS matrix of the last memory_size pairs, scaled by "
        "<s, y> / <y, y>, in NumPy; it needs value, grad and value_fn at update",
        "the zoom line search, on a mesh, in bfloat16",
    ),
    "optax.adan": Served(
        Paper(
            "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
            "Xie et al.",
            2022,
            "2208.06677",
        ),
        4,
        "against its equations, and it differs: it takes the code's b2 = 0.92 and weights the difference of gradients "
        "by 1 - b2 = 0.08, where the code has 0.92 and the paper, with 1 - b2 for b2, the same",
        "take gk.adan, which agrees with the official code",
        5e-3,
    ),
    "optax.contrib.adopt": Served(
        Paper(
            "ADOPT: Modified Adam Can Converge with Any β2 with the Optimal Rate",
            "Taniguchi et al.",
            2024,
            "2411.02853",
        ),
        2,
        "against gk.adopt, step by step: the same without weight decay",
        "a decay behind it acts in the first step, in which nothing should move: gk.adopt holds it",
        5e-3,
    ),
    "optax.contrib.cocob": Served(
        Paper(
            "Training Deep Networks without Learning Rates Through Coin Betting",
            "Orabona, Tommasi",
            2017,
            "1705.07795",
        ),
        5,
        "against gk.cocob, step by step: the same",
        "its learning_rate multiplies gradients, of whose size the rule knows nothing: a schedule has no effect; in "
        "gk.cocob a factor multiplies the update",
    ),
}
