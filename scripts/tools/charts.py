"""Line charts for a web page: SVG that stretches to any width, with text that stays the size of text.

Lines are drawn in a square of 1000 x 1000 that the page stretches; ticks and names are HTML, placed by percentages. Colours
and sizes are in scripts/tools/report.html, which also lets a person read values off with the pointer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

SIDE = 1000
HEIGHT = 220
"""Pixels, as in scripts/tools/report.html: names at the ends of lines are kept apart by it."""
NAME_HEIGHT = 15
MOST_POINTS = 240
"""Of a line. There are hardly more pixels, and a run of a million steps has tens of thousands of rows."""
MOST_DOTS = 40


@dataclass(frozen=True)
class Point:
    """A value y at step x, with the lowest and highest value that it stands for."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """One line and its band."""

    name: str
    """Short: it stands at the end of the line."""
    points: list[Point]
    """By growing x, all finite."""
    colour: int
    """1 to 5, see scripts/tools/report.html."""
    band: bool = True
    """Whether to show from where to where the values behind each point go."""


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: means over intervals of equal length, each with the lowest and highest value in it."""
    if len(points) <= most:
        return list(points)
    first, length = points[0].x, points[-1].x - points[0].x
    bins: dict[int, list[Point]] = {}
    for point in points:
        bins.setdefault(min(int((point.x - first) / length * most), most - 1), []).append(point)
    return [
        Point(
            sum(p.x for p in members) / len(members),
            sum(p.y for p in members) / len(members),
            min(p.low for p in members),
            max(p.high for p in members),
        )
        for members in bins.values()
    ]


@dataclass(frozen=True)
class Axis:
    """Values from `first` to `last`, placed from 0 to SIDE."""

    first: float
    last: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], log: bool = False) -> "Axis":
        """The axis that shows all `values` with some space; logarithmic ones must be greater than 0."""
        scale: Callable[[float], float] = math.log if log else float
        low, high = scale(min(values)), scale(max(values))
        space = 0.06 * (high - low) or (0.1 if log else 0.1 * abs(low) or 1.0)
        return cls(_unscaled(low - space, log), _unscaled(high + space, log), log)

    def place(self, value: float) -> float:
        """0 at `first`, SIDE at `last`; what is beyond the ends is put there."""
        scale: Callable[[float], float] = math.log if self.log else float
        value = min(max(value, self.first), self.last)
        return SIDE * (scale(value) - scale(self.first)) / (scale(self.last) - scale(self.first))

    def ticks(self, about: int = 5) -> list[float]:
        """Round values on the axis, roughly `about` of them."""
        if self.log:
            for mantissas in ((1,), (1, 3), (1, 2, 5)):
                exponents = range(math.floor(math.log10(self.first)), math.ceil(math.log10(self.last)) + 1)
                found = [m * 10.0**e for e in exponents for m in mantissas if self.first <= m * 10.0**e <= self.last]
                if len(found) > about + 2:
                    return found[:: len(found) // about]
                if len(found) >= about - 1:
                    return found
        size = 10.0 ** math.floor(math.log10((self.last - self.first) / about))
        step = next(m * size for m in (1, 2, 5, 10) if (self.last - self.first) / (m * size) <= about)
        return [i * step for i in range(math.ceil(self.first / step), math.floor(self.last / step) + 1)]


def _unscaled(value: float, log: bool) -> float:
    return math.exp(value) if log else value


def number(value: float, digits: int = 4) -> str:
    """For a person: 12,345 or 0.0125 or 2e-5."""
    if value and not 1e-5 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    if abs(value) < 1e-3:  # where %g has exponents
        decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else "0"
    return f"{value:,.{max(digits, len(str(int(abs(value)))))}g}"


def short(value: float) -> str:
    """For a tick of the step axis: 500, 20k, 1.3M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def line_chart(title: str, unit: str, series: Sequence[Series], *, log: bool = False, marks: Sequence[float] = ()) -> str:
    """HTML of a chart over the training step; "" if no series has a point. marks: steps to draw a vertical line at.

    `log` asks for a logarithmic axis, which values of 0 and below do not get.
    """
    series = [s for s in series if s.points]
    if not series:
        return ""
    last_step = max(s.points[-1].x for s in series)
    values = [f"{s.name} {number(s.points[-1].y, 3)}" for s in series]
    series = [replace(s, points=thinned(s.points)) for s in series]
    points = [point for s in series for point in s.points]
    smallest = min(point.y for point in points)
    log = log and smallest > 0
    x = Axis(min(0.0, points[0].x), last_step or 1.0)
    y = Axis.around(
        [edge for s in series for p in s.points for edge in ((p.low, p.high) if s.band else (p.y,)) if edge > 0 or not log], log
    )
    levels = [SIDE - y.place(value) for value in y.ticks()]
    drawn = [
        f'<path class="grid" d="{" ".join(f"M0 {level:.1f}h{SIDE}" for level in levels)}"/>',
        *(f'<path class="mark" d="M{x.place(mark):.1f} 0v{SIDE}"/>' for mark in marks if x.first <= mark <= x.last),
        *(_band(s, x, y) for s in series),
        *(_line(s, x, y) for s in series),
    ]
    latest = [f' <span class="c{s.colour}">{escape(value.strip())}</span>' for s, value in zip(series, values, strict=True)]
    description = f"{title}, {unit}, over training steps up to {last_step:,.0f}; last: {', '.join(values)}"
    # Names of single lines would repeat the title.
    names = _names(series, y) if len(series) > 1 else ""
    return f"""<figure class="chart">
<figcaption><b>{escape(title)}</b> <span class="unit">{escape(unit)}</span>
<output>step {last_step:,.0f}{"".join(latest)}</output></figcaption>
<div class="plot{" named" if names else ""}">
<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" aria-label="{escape(description)}"
 data-x="{x.first:g} {x.last:.10g}" data-y="{y.first:.6g} {y.last:.6g}"{" data-log" if log else ""}>
{"".join(drawn)}
</svg>
{_labels(x, y)}{names}
</div>
</figure>
"""


def _band(series: Series, x: Axis, y: Axis) -> str:
    if not series.band or all(point.low == point.high for point in series.points):
        return ""
    there = [f"{x.place(p.x):.1f},{SIDE - y.place(p.high):.1f}" for p in series.points]
    back = [f"{x.place(p.x):.1f},{SIDE - y.place(p.low):.1f}" for p in reversed(series.points)]
    return f'<polygon class="band c{series.colour}" points="{" ".join(there + back)}"/>'


def _line(series: Series, x: Axis, y: Axis) -> str:
    places = [(x.place(p.x), SIDE - y.place(p.y)) for p in series.points]
    points = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
    line = f'<polyline class="c{series.colour}" data-name="{escape(series.name)}" points="{points}"/>'
    if len(places) <= MOST_DOTS:
        # Lines of no length with round ends stay round however the picture is stretched.
        line += f'<path class="dots c{series.colour}" d="{"".join(f"M{left:.1f} {top:.1f}h0" for left, top in places)}"/>'
    return line


def _labels(x: Axis, y: Axis) -> str:
    ticks = [f'<span class="y" style="top:{(SIDE - y.place(t)) / SIDE:.1%}">{number(t)}</span>' for t in y.ticks()]
    ticks += [f'<span class="x" style="left:{x.place(t) / SIDE:.1%}">{short(t)}</span>' for t in x.ticks()]
    return "".join(ticks)


def _names(series: Sequence[Series], y: Axis) -> str:
    """Names at the ends of the lines, moved so that none covers another."""
    ordered = sorted(series, key=lambda s: -y.place(s.points[-1].y))
    tops: list[float] = []
    for i, one in enumerate(ordered):
        top = HEIGHT * (1 - y.place(one.points[-1].y) / SIDE)
        below = HEIGHT - NAME_HEIGHT * (len(ordered) - 1 - i)
        tops.append(min(max(top, tops[-1] + NAME_HEIGHT if tops else 0.0), below))
    return "".join(
        f'<span class="name c{one.colour}" style="top:{top:.0f}px">{escape(one.name)}</span>'
        for one, top in zip(ordered, tops, strict=True)
    )
