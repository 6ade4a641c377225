"""The curve of a schedule: as a picture, and as `gradkit show` prints it."""

import ast
import pathlib
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from gradkit import checks
from gradkit.catalogue import Card
from gradkit.schedules.plot import curve, plot
from gradkit.training.report import style
from gradkit.training.report.charts import matplotlib_of

# Of an example without an end.
STEPS = 100


def save_plot(
    schedules: Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]],
    path: Any,
    steps: int | None = None,
    *,
    title: str = "",
) -> None:
    """Draws the curve of a schedule, or several, into a file.

    Args:
      schedules: step -> value; or a mapping from names to schedules, which the picture names.
      path: the file; its ending is the format: .png, .svg or .pdf.
      steps: how many are drawn, from 0 on, >= 1. Default None: the length of each `Schedule`.
      title: above the picture. Default none.

    Raises:
      ValueError: no number of steps for a schedule without an end; no schedule.
      ImportError: matplotlib is not installed: gradkit[race].

    Example:
      >>> import tempfile
      >>> import gradkit as gk
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder) / "wsd.png"
      ...     save_plot(gk.schedules.wsd(0.1, warmup_steps=10, stable_steps=50, decay_steps=40), file)
      ...     file.read_bytes()[1:4]
      b'PNG'
    """
    named = dict(schedules) if isinstance(schedules, Mapping) else {"": schedules}
    if not named:
        raise ValueError("save_plot: schedules must be one schedule or more, got none")
    curves = {name: curve(schedule, steps) for name, schedule in named.items()}
    matplotlib = matplotlib_of("a picture of a schedule")
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.4), layout="constrained", facecolor=style.PAPER)
        axes = figure.add_subplot()
        for i, (name, (at, values)) in enumerate(curves.items()):
            axes.plot(at, values, color=style.colour(i), linestyle=style.dash(i), label=name)
        low = min(values.min() for _, values in curves.values())
        axes.set_xlim(0, max(at[-1] for at, _ in curves.values()) or 1)
        if low >= 0:
            axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set_xlabel("step")
        if len(curves) > 1:
            axes.legend(frameon=False)
        figure.savefig(pathlib.Path(path), dpi=130)


def arguments_of(text: str) -> dict[str, Any]:
    """Keyword arguments as they are written in a call, numbers and texts and tuples of them.

    >>> arguments_of("peak_value=0.1, shape='linear', cycles=((3, 4), (5, 6))")
    {'peak_value': 0.1, 'shape': 'linear', 'cycles': ((3, 4), (5, 6))}
    """
    said = f"arguments must be written as in a call, such as peak_value=0.1,shape='linear', got {text!r}"
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except SyntaxError:
        raise ValueError(said) from None
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(said)
    try:
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except ValueError:
        raise ValueError(said) from None


def example_of(card: Card, text: str | None, steps: int | None) -> tuple[str, Callable[[Any], Any], int | None]:
    """A schedule as `gradkit show` draws it: the call, what it makes, and over how many steps.

    Args:
      card: of a schedule.
      text: arguments that take the place of the example's, as they are written in a call; None: the example's.
      steps: how many are drawn; None: its length, or 100 where it has none.

    Raises:
      ValueError: arguments that the schedule does not have, or refuses.
    """
    given = dict(card.example) if text is None else arguments_of(text)
    try:
        schedule = card.function(**given)
    except TypeError as error:
        raise ValueError(f"{card.public_name}: {error}; `gradkit show {card.name}` lists its arguments") from None
    if steps is None and getattr(schedule, "length", None) is None:
        steps = STEPS
    call = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"{card.public_name}({call})", schedule, steps


def drawing(
    card: Card, *, arguments: str | None, steps: int | None, png: str | None, width: int
) -> Callable[[], str] | None:
    """What draws the curve of a schedule: the call that makes it, and the curve in characters; and a picture where one
    is asked for. None for other methods.

    Raises:
      ValueError: a drawing is asked for of what is no schedule, of arguments that it does not have, or into a file of
        no known kind.
    """
    _check_drawing(card, arguments=arguments, steps=steps, png=png)
    if card.form != "schedule":
        return None
    call, schedule, steps = example_of(card, arguments, steps)
    if png is not None:
        matplotlib_of("a picture of a schedule")

    def draw() -> str:
        lines = [textwrap.fill(call, width, subsequent_indent="    "), plot(schedule, steps, width=width)]
        if png is not None:
            save_plot(schedule, png, steps, title=textwrap.fill(call, 56))
            lines.append(f"picture: {png}")
        return "\n".join(lines)

    return draw


def _check_drawing(card: Card, **given: Any) -> None:
    asked = [name for name, value in given.items() if value is not None]
    if asked and card.form != "schedule":
        raise ValueError(
            f"{' and '.join(asked)} must be left out: {card.public_name} is no schedule, its form is {card.form}"
        )
    png = given.get("png")
    if png is not None and not pathlib.Path(png).parent.is_dir():
        raise ValueError(f"png must be a file in a folder that exists, got {png!r}")
    if png is not None:
        checks.choice("the ending of png", pathlib.Path(png).suffix, [".png", ".svg", ".pdf"])
