"""The pictures of `pictures` as SVG, in colours of the page."""

import contourpy
import numpy as np
from pictures import BOTTOM, CENTRES, HEIGHT, LEFT, MINIMUM, RIGHT, STEPS, TOP, WIDTH, Path, valley


def _pixel(points: np.ndarray) -> np.ndarray:
    x = (points[..., 0] - LEFT) / (RIGHT - LEFT) * WIDTH
    y = (TOP - points[..., 1]) / (TOP - BOTTOM) * HEIGHT
    return np.stack([np.clip(x, -WIDTH, 2 * WIDTH), np.clip(y, -HEIGHT, 2 * HEIGHT)], -1)


def _line(points: np.ndarray) -> str:
    """The coordinates of a polyline; points that are where the last one was are left out."""
    out: list[str] = []
    for x, y in points:
        text = f"{x:.1f},{y:.1f}"
        if not out or out[-1] != text:
            out.append(text)
    return " ".join(out)


def _dots(points: np.ndarray) -> str:
    """A path of round dots, one per step."""
    seen = dict.fromkeys(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return "".join(seen)


def svg(path: Path, title: str) -> str:
    """The picture, in colours of the page."""
    head = f'<svg class="picture {path.kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
    if path.kind == "schedule":
        return f"{head}{_curve(path.points)}</svg>"
    pixels = _pixel(path.points)
    if path.kind == "replicas":
        mean = pixels.mean(0)
        thin = "".join(f'<polyline class="thin r{i}" points="{_line(p)}"/>' for i, p in enumerate(pixels))
        body = f'{thin}<polyline points="{_line(mean)}"/><path class="dots" d="{_dots(mean)}"/>'
        pixels = mean
    else:
        body = f'<polyline points="{_line(pixels)}"/><path class="dots" d="{_dots(pixels)}"/>'
    if path.kind == "tasks":
        marks = "".join(
            f'<circle class="task" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in _pixel(CENTRES[: path.more])
        )
    else:
        x, y = _pixel(MINIMUM)
        marks = f'<path class="minimum" d="M{x - 3:.1f} {y:.1f}h6m-3 -3v6"/>'
    x, y = pixels[0]
    end = pixels[-1]
    marks += f'<circle class="start" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
    marks += f'<circle class="end" cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="2.6"/>'
    return f"{head}{body}{marks}</svg>"


def _curve(values: np.ndarray) -> str:
    low, high = min(0.0, float(values.min())), float(values.max())
    span = high - low or 1.0
    x = 10 + np.arange(len(values)) / max(1, len(values) - 1) * (WIDTH - 20)
    y = HEIGHT - 16 - (values - low) / span * (HEIGHT - 34)
    points = np.stack([x, y], 1)
    base = f'<path class="axis" d="M10 {HEIGHT - 14}h{WIDTH - 20}"/>'
    texts = f'<text x="10" y="11">{high:.3g}</text>'
    texts += f'<text x="{WIDTH - 10}" y="{HEIGHT - 3}" text-anchor="end">{len(values)} steps</text>'
    return f'{base}<polyline points="{_line(points)}"/><path class="dots" d="{_dots(points)}"/>{texts}'


def background(colour: str) -> str:
    """The contours of the valley, as a file of its own."""
    x, y = np.meshgrid(np.linspace(LEFT, RIGHT, 121), np.linspace(BOTTOM, TOP, 91))
    height = valley(np.stack([x, y], -1))
    lines = contourpy.contour_generator(x, y, height)
    levels = [0.02, 0.1, 0.3, 0.7, 1.4, 2.6, 4.5, 7.5, 12.0]
    drawn = "".join(
        f'<polyline opacity="{0.95 - 0.08 * i:.2f}" points="{_line(_pixel(line))}"/>'
        for i, level in enumerate(levels)
        for line in lines.lines(level)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<g fill="none" stroke="{colour}" stroke-width="0.7">{drawn}</g></svg>'
    )


def caption(path: Path) -> str:
    """What a picture shows."""
    rate = "" if path.rate is None else f", learning rate {path.rate:.2g}, the best of a grid"
    if path.kind == "schedule":
        return f"Its values over {path.more} steps, with the arguments of its test."
    if path.kind == "tasks":
        return f"{STEPS} steps of SGD between the minima of {path.more} tasks{rate}."
    if path.kind == "replicas":
        return f"Four replicas with losses of their own, and their mean, in {STEPS} steps{rate}."
    where = "two singular values of a matrix in a curved valley" if path.kind == "matrix" else "a curved valley"
    return f"{STEPS} steps in {where}, from the open to the full circle; the cross is the minimum{rate}."
