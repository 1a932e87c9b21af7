"""Lines in a plane, as SVG. Pure: no fonts are measured, no library is asked.

One vertical axis, up to four lines, a legend on top. Axes are linear, or logarithmic (base ten);
where zero must be shown on a logarithmic axis, it takes the place of one step below the least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 52, 46
_COLOURS = ("#1f6fb4", "#c8501e", "#3b8a3e", "#7a4fa3")
_INK, _GRID = "#444444", "#d8d8d8"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot, from left to right."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    across: str
    up: str
    lines: Sequence[Line]
    log_across: bool = True
    log_up: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Where values lie between two ends of the picture."""

    least: float
    most: float
    start: float
    end: float
    is_log: bool

    def at(self, value: float) -> float:
        share = (self._measure(value) - self._measure(self.least)) / (
            self._measure(self.most) - self._measure(self.least)
        )
        return self.start + share * (self.end - self.start)

    def _measure(self, value: float) -> float:
        return math.log10(max(value, self.least)) if self.is_log else value

    def ticks(self) -> list[float]:
        """Round values, from `least` to `most`."""
        if self.is_log:
            first, last = math.log10(self.least), math.log10(self.most)
            return [10.0**power for power in range(math.ceil(first), math.floor(last) + 1)]
        step = _round_up((self.most - self.least) / 5)
        return [step * n for n in range(math.ceil(self.least / step), int(self.most / step) + 1)]


def scale_of(values: Sequence[float], start: float, end: float, *, is_log: bool) -> Scale:
    """A scale on which all of `values` have room, with round ends."""
    if not is_log:
        step = _round_up(max(values, default=1.0) / 5 or 1.0)
        return Scale(
            0.0, step * math.ceil(max(values, default=1.0) / step) or 1.0, start, end, False
        )
    above = [value for value in values if value > 0] or [1.0]
    least = 10.0 ** math.floor(math.log10(min(above)))
    if len(above) < len(values):
        least /= 10  # the place of zero
    most = 10.0 ** math.ceil(math.log10(max(above)))
    return Scale(least, most if most > least else least * 10, start, end, True)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20...; or 0.1, 0.2..."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= value * 0.999)


def svg(plot: Plot) -> str:
    """The plot as an SVG document."""
    points = [point for line in plot.lines for point in line.points]
    across = scale_of([x for x, _ in points], _LEFT, WIDTH - _RIGHT, is_log=plot.log_across)
    up = scale_of([y for _, y in points], HEIGHT - _BOTTOM, _TOP, is_log=plot.log_up)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        f' viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(WIDTH / 2, 18, plot.title, "middle", size=13),
        *_axes(plot, across, up),
    ]
    for index, line in enumerate(plot.lines):
        parts += _drawn(line, index, across, up)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(plot: Plot, across: Scale, up: Scale) -> Iterator[str]:
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
    for value in up.ticks():
        y = up.at(value)
        yield _stroke((left, y), (right, y), _GRID)
        yield _text(left - 6, y + 4, _said(value), "end")
    for value in across.ticks():
        x = across.at(value)
        yield _stroke((x, top), (x, bottom), _GRID)
        is_zero = across.is_log and value == across.least and _has_zero(plot)
        yield _text(x, bottom + 15, "0" if is_zero else _said(value), "middle")
    yield _stroke((left, bottom), (right, bottom), _INK)
    yield _stroke((left, top), (left, bottom), _INK)
    yield _text((left + right) / 2, HEIGHT - 10, plot.across, "middle")
    middle = (top + bottom) / 2
    turned = f' transform="rotate(-90 14 {middle:.1f})"'
    yield _text(14, middle, plot.up, "middle", more=turned)


def _has_zero(plot: Plot) -> bool:
    return any(x == 0 for line in plot.lines for x, _ in line.points)


def _drawn(line: Line, index: int, across: Scale, up: Scale) -> Iterator[str]:
    colour = _COLOURS[index % len(_COLOURS)]
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in places:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    start = _LEFT + index * (WIDTH - _LEFT - _RIGHT) / len(_COLOURS)
    yield f'<rect x="{start:.1f}" y="28" width="12" height="8" fill="{colour}"/>'
    yield _text(start + 16, 36, line.name, "start")


def _stroke(start: Point, end: Point, colour: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 11, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="{_INK}"{more}>{escape(text)}</text>'


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 or value == 0 else f"{value:g}"
