"""Colours and type of the charts: one place, so that pictures and pages agree.

Series colours are those of Okabe and Ito, which stay apart for colour-blind readers; past eight the dash
changes. Inline SVGs take every colour from a CSS variable, so one drawing serves light and dark pages.
"""

import html
import io
import re
from typing import Any

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98300", "#3f9fd8", "#7b5fc0", "#5d6470")
DARK = ("#4aa8e0", "#ff8a3d", "#35c99b", "#e79cc6", "#f0b73a", "#86ccf5", "#b19bf0", "#a3abb8")
INK, MUTED, GRID, PAPER, PAGE, BEST = "#1c1f24", "#6a7079", "#e4e6ea", "#ffffff", "#f5f6f8", "#eaf4ef"
DARK_BASE = ("#e9ebef", "#9aa2ae", "#30353d", "#1b1f26", "#12151a", "#1c2f2a")
DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.2)))

RC = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.labelsize": 9.5,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
}


def colour(index: int) -> str:
    """The colour of the method at a place of the configuration."""
    return LIGHT[index % len(LIGHT)]


def dash(index: int) -> Any:
    """The dash of the method at a place of the configuration."""
    return DASHES[index // len(LIGHT) % len(DASHES)]


def css() -> str:
    """The variables that inline SVGs are drawn with, for light and dark pages."""
    names = ("ink", "muted", "grid", "paper", "page", "best", *(f"s{i}" for i in range(len(LIGHT))))
    light, dark = (
        " ".join(f"--{name}: {value};" for name, value in zip(names, values, strict=True))
        for values in ((INK, MUTED, GRID, PAPER, PAGE, BEST, *LIGHT), (*DARK_BASE, *DARK))
    )
    return f""":root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"""


def themed_svg(figure: Any, label: str) -> str:
    """A matplotlib figure as an SVG element whose colours are variables of the page.

    Args:
      figure: drawn with the colours of this file.
      label: what the chart shows, for readers who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    names = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}
    names |= {series: f"--s{i}" for i, series in enumerate(LIGHT)}
    for value, name in names.items():
        svg = svg.replace(value, f"var({name})")
    svg = re.sub(r"font: ([^;\"]*?)([0-9.]+px) [^;\"]*", r"font: \1\2 system-ui, sans-serif", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
