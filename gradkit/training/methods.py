"""The methods that race, train and are inspected: from a name, a factory, a chain or a file to a `Method`.

"lion", "gk.lion"               a card of the catalogue, which says its rate, spread, schedule and arguments
"nesterov"                      a variant on a card
"optax.adamw"                   an optimizer of optax, "optax.contrib.muon" one of its contributed ones
"my_chain.py"                   a file that defines `chain`, see `gradkit.training.chains`
gk.lion, optax.adamw, f         a function learning rate -> transformation
optax.chain(...)                a transformation, whose rate is its own
("mine", any of these)          under a name of one's own
"""

import functools
import inspect
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from gradkit import catalogue, checks, leaves, schedules
from gradkit.catalogue import Card, Race
from gradkit.engine.by_role import by_role
from gradkit.optimizers.momentum import sgd
from gradkit.training import chains
from gradkit.training.served_by_optax import OPTAX, SERVED
from gradkit.transforms import scale_by_adam, scale_by_learning_rate

DEFAULT_CENTRE = 1e-2
# Optimizers of optax that find their step themselves: the rate is a factor of it, and no schedule belongs on top.
SELF_TUNING = frozenset(
    (
        *("cocob", "dadapt_adamw", "dog", "dowg", "lbfgs", "momo", "momo_adam", "polyak_sgd", "prodigy"),
        *("schedule_free_adamw", "schedule_free_sgd"),
    )
)


class Method(NamedTuple):
    """One method as it races.

    Attributes:
      name: as in tables and flags.
      make: learning rate (a schedule or a number) -> transformation.
      centre: the middle of its grid of learning rates; None for a chain whose rate is its own, and for a method that
        has none to tune.
      decades: how far the grid reaches to each side.
      schedule: "warmup_cosine", or None where the rate stays constant.
      card: its card, where it has one.
      aggregator: the card of the aggregator of the gradients of tasks that stands in front of it.
    """

    name: str
    make: Callable[[Any], optax.GradientTransformation]
    centre: float | None = DEFAULT_CENTRE
    decades: float = 1.0
    schedule: str | None = "warmup_cosine"
    card: Card | None = None
    aggregator: Card | None = None

    def on(self, tasks: int) -> "Method":
        """The method on a problem of so many tasks: its aggregator is made for their number.

        >>> aggregated("dwa", find("lion")).on(2).make(0.1).init(0.0)[0].total.shape
        (2,)
        """
        card = self.aggregator
        if card is None:
            return self
        return self._replace(
            make=lambda rate: optax.chain(make_aggregator(card, tasks), self.make(rate)), aggregator=None
        )

    def scheduled(
        self, learning_rate: Any, steps: int, shape: Callable[[Any, int], Any] | None = None
    ) -> optax.GradientTransformation:
        """The method under the schedule of its card, or another; the peak rate may be traced.

        Args:
          learning_rate: the peak.
          steps: of the run.
          shape: (peak, steps) -> schedule, such as those of `SHAPES`. Default None: that of the card.

        Raises:
          ValueError: another schedule for a chain whose rate is its own.
        """
        if shape is not None and self.centre is None:
            raise ValueError(f"schedule must be left out: the learning rate of {self.name} is its own")
        if shape is None:
            shape = SHAPES["constant" if self.schedule is None else self.schedule]
        tx = self.make(shape(learning_rate, steps))
        if not isinstance(tx, optax.GradientTransformation):
            raise ValueError(f"the method {self.name} must make a transformation of a learning rate, got {tx!r}")
        return tx


def warmup_cosine(peak: Any, steps: int) -> schedules.Schedule:
    """A linear warm-up over the first twentieth, then a cosine to zero at `steps`. The peak may be traced.

    >>> import numpy as np
    >>> print(warmup_cosine(1.0, 40)(np.array([0, 2, 21, 40])).round(3))
    [0.5 1.  0.5 0. ]
    """
    warm = max(1, steps // 20)
    return schedules.warmup(warm, peak, init_value=peak / warm) + schedules.decay("cosine", steps - warm)


def stable(peak: Any, steps: int) -> schedules.Schedule:
    """A linear warm-up over the first twentieth, then the peak for ever: the trunk that cooldowns branch from."""
    warm = max(1, steps // 20)
    return schedules.wsd(peak, warmup_steps=warm, init_value=peak / warm)


def warmup_linear(peak: Any, steps: int) -> schedules.Schedule:
    """A linear warm-up over the first twentieth, then a linear decay to zero at `steps`."""
    return schedules.linear_decay(peak, total_steps=steps, warmup_steps=min(max(1, steps // 20), steps - 1))


# Schedules by name, for `gradkit train --schedule`: (peak, steps) -> schedule or number.
SHAPES: dict[str, Callable[[Any, int], Any]] = {
    "warmup_cosine": warmup_cosine,
    "warmup_linear": warmup_linear,
    "wsd": stable,
    "constant": lambda peak, steps: peak,
}


def find_aggregator(name: str) -> Card:
    """The card of an aggregator of the gradients of tasks that is built without arguments but the number of tasks, for
    `--aggregator`.

    Raises:
      ValueError: a name that no such aggregator has, with the nearest.

    >>> find_aggregator("upgrad").public_name
    'gk.aggregation.upgrad'
    """
    ready = {
        name: card
        for name, card in catalogue.cards("aggregator").items()
        if card.tasks.batches == 1
        and all(
            p.default is not p.empty or p.name == "num_tasks"
            for p in inspect.signature(card.function).parameters.values()
        )
    }
    if name not in ready:
        offer = checks.nearest(name, ready) or f"; there are {', '.join(ready)}"
        raise ValueError(
            f"aggregator must be the name of an aggregator of tasks that needs no arguments, got {name!r}{offer}; one "
            "with arguments goes into the file of a --chain"
        )
    return ready[name]


def make_aggregator(card: Card, tasks: int) -> optax.GradientTransformation:
    """The aggregator of `find_aggregator` for so many tasks.

    Raises:
      ValueError: another number of tasks than it takes.

    >>> make_aggregator(find_aggregator("gradvac"), 3).init(0.0).phi.shape
    (3, 3)
    """
    if card.tasks.nearest(tasks) != tasks:
        few, most = card.tasks.fewest, card.tasks.most
        takes = f"{few}" if few == most else f"{few} or more" if most is None else f"{few} to {most}"
        raise ValueError(f"aggregator must be one for {tasks} tasks, got {card.name}, which takes {takes}")
    needs_tasks = "num_tasks" in inspect.signature(card.function).parameters
    return card.function(**({"num_tasks": tasks} if needs_tasks else {}))


def aggregated(aggregator: str, method: Method) -> Method:
    """A method behind an aggregator of the gradients of tasks.

    It is made when the number of tasks is known: `Method.on`.

    >>> aggregated("upgrad", find("lion")).name
    'upgrad+lion'
    """
    return method._replace(name=f"{aggregator}+{method.name}", aggregator=find_aggregator(aggregator))


def first_argument(function: Callable[..., Any]) -> str:
    """The name of a factory's first argument, "" where it has none."""
    return next(iter(inspect.signature(function).parameters), "")


def build(card: Card, learning_rate: Any, **changes: Any) -> optax.GradientTransformation:
    """A method as it stands in a chain: an optimizer with its rate, a primitive, a controller or the direction in a
    wrapper with a rate behind it (in it, where the wrapper takes it), a wrapper around SGD with momentum. Leaves that a
    primitive is not for are given to Adam.

    >>> import jax.numpy as jnp
    >>> build(catalogue.find("scale_by_lion"), 0.1).init({"w": jnp.ones(3)})[0].mu["w"].shape
    (3,)
    """
    kwargs = {**card.example, **changes}
    if card.form == "optimizer":
        kwargs.pop(first_argument(card.function), None)
        return card.function(*_given(learning_rate), **kwargs)
    rate = scale_by_learning_rate(learning_rate)
    if card.form in ("primitive", "controller"):
        link = card.function(**kwargs)
        if card.only == "matrices":
            link = by_role(leaves.Method(card.name), link, scale_by_adam(), kwargs.get("layout", leaves.default_layout))
        return optax.chain(link, rate)
    if card.wraps == "direction":
        if "learning_rate" in kwargs:
            return card.function(scale_by_adam(), **{**kwargs, "learning_rate": learning_rate})
        return optax.chain(card.function(scale_by_adam(), **kwargs), rate)
    return card.function(sgd(learning_rate, momentum=0.9), **kwargs)


def _given(learning_rate: Any) -> tuple[Any, ...]:
    """A learning rate as an argument; none where it is None: a method without a rate to tune then has the factor 1."""
    return () if learning_rate is None else (learning_rate,)


def _times(rate: float, factor: Any) -> Any:
    """A learning rate that stays as it is, times the factor of a method without one to tune: a number, a schedule, or
    None for 1."""
    if factor is None:
        return rate
    return (lambda count: rate * factor(count)) if callable(factor) else rate * factor


def _of_card(name: str, card: Card, race: Race | None) -> Method:
    """A method under one of the names on its card."""
    if race is None:
        return Method(name, functools.partial(build, card), card=card)

    def make(learning_rate: Any) -> optax.GradientTransformation:
        arguments = dict(race.arguments)
        if "learning_rate" in arguments:
            learning_rate = _times(arguments.pop("learning_rate"), learning_rate)
        if race.before:
            return optax.chain(card.function(**arguments), find(race.before).make(learning_rate))
        if race.around:
            return card.function(find(race.around).make(learning_rate), **arguments)
        if card.form == "optimizer":
            return card.function(*_given(learning_rate), **arguments)
        return build(card, learning_rate, **arguments)

    return Method(name, make, race.rate, race.decades, race.schedule, card)


def _entries() -> dict[str, tuple[Card, Race | None]]:
    """Every name of the catalogue that can race: methods that go into a chain, and variants on their cards."""
    found = {}
    for name, card in catalogue.cards().items():
        found |= {variant: (card, race) for variant, race in card.variants.items()}
        if card.is_link:
            found[name] = card, card.race
    return found


def variants() -> tuple[str, ...]:
    """The names on cards under which a method races with other arguments."""
    return tuple(variant for card in catalogue.cards().values() for variant in card.variants)


def names() -> tuple[str, ...]:
    """The optimizers of the catalogue that can race, and the variants on cards; not those that ask for predictions of
    the model, unless their card says of which loss."""

    def ready(name: str, card: Card, race: Race | None) -> bool:
        if "race" in card.opt_outs and race is None:
            return False
        return race is not None or (card.form == "optimizer" and "model_fn" not in card.needs)

    return tuple(sorted(name for name, (card, race) in _entries().items() if ready(name, card, race)))


def find(method: Any) -> Method:
    """The method of a name, a factory, a chain or a file.

    Args:
      method: see the docstring of this module.

    Raises:
      ValueError: a name that nothing has, with the nearest; a file that fails; what is none of these.

    >>> find("lion").centre, find("optax.lion").centre
    (0.002, 0.002)
    >>> find("lyon")
    Traceback (most recent call last):
    ValueError: no method is called 'lyon'; did you mean 'lion'?
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, tuple) and len(method) == 2 and isinstance(method[0], str):
        return find(method[1])._replace(name=method[0])
    # A transformation is a named tuple of two functions.
    if isinstance(method, optax.GradientTransformation):
        return Method("chain", lambda learning_rate: method, None, schedule=None)
    if isinstance(method, str):
        return _by_name(method)
    if callable(method):
        return _by_factory(method)
    raise ValueError(
        f"a method must be a name, a function of a learning rate, a transformation, or a pair (name, one of these), "
        f"got {method!r}"
    )


def _by_name(name: str) -> Method:
    if name.startswith("optax."):
        return _of_optax(name)
    if name.partition(":")[0].endswith(".py"):
        return _by_file(name)
    entries = _entries()
    short = name.removeprefix("gk.")
    if short in entries:
        return _of_card(short, *entries[short])
    offer = checks.nearest(name, names()) or checks.nearest(name, entries)
    raise ValueError(f"no method is called {name!r}{offer or '; `gradkit list` shows all of them'}")


def _of_optax(name: str) -> Method:
    room, _, short = name.removeprefix("optax.").rpartition(".")
    module = {"": optax, "contrib": optax.contrib}.get(room)
    factory = getattr(module, short, None)
    if not inspect.isfunction(factory) or not first_argument(factory):
        own = [f"optax.{n}" for n in dir(optax)] + [f"optax.contrib.{n}" for n in dir(optax.contrib)]
        raise ValueError(f"optax has no optimizer called {name!r}{checks.nearest(name, own)}")
    if short in SELF_TUNING:
        return Method(name, factory, 1.0, schedule=None)
    if name in SERVED and SERVED[name].rate is not None:
        return Method(name, factory, SERVED[name].rate)
    entry = _entries().get(short)
    like = entry[1] if entry is not None else None
    return Method(name, factory, DEFAULT_CENTRE if like is None else like.rate)


def _by_factory(factory: Callable[..., Any]) -> Method:
    function = factory.func if isinstance(factory, functools.partial) else factory
    name = getattr(function, "__name__", type(function).__name__).strip("<>")
    card = catalogue.cards().get(name)
    if card is not None and card.function is function:
        if factory is function:
            return find(name)
        race = card.race or Race()
        return Method(name, factory, race.rate, race.decades, race.schedule, card)
    for room, module in (("optax.", optax), ("optax.contrib.", optax.contrib)):
        if getattr(module, name, None) is function:
            return _of_optax(room + name)._replace(make=factory)
    if not first_argument(factory):
        raise ValueError(f"the method {name} must be a function of a learning rate, got one without arguments")
    return Method(name, factory)


def _by_file(where: str) -> Method:
    found, race = chains.from_file(where)
    name = pathlib.PurePath(where).name
    if isinstance(found, optax.GradientTransformation):
        return Method(name, lambda learning_rate: found, None, schedule=None)
    if not first_argument(found):
        return Method(name, lambda learning_rate: found(), None, schedule=None)
    return Method(name, found, race.rate, race.decades, race.schedule)


def card_of(name: str) -> Card:
    """The card of a method of any form, whether it is called `lion` or `gk.lion`; of one of optax with what a test of
    this library has compared.

    Raises:
      ValueError: no method has this name; the nearest are offered.
    """
    if name.startswith("optax."):
        make = _of_optax(name).make
        if name not in SERVED:
            return Card(make, "optimizer", OPTAX, served=name)
        paper, words, checked, unchecked, rate = SERVED[name]
        race = None if rate is None else Race(rate)
        return Card(make, "optimizer", paper, words=words, served=name, checked=checked, unchecked=unchecked, race=race)
    return catalogue.find(name.removeprefix("gk.").split(".")[-1])
