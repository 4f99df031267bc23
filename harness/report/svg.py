"""Drawing in SVG: scales, axes, marks and texts in the page's own colours, with tooltips that need no script.

Colours are classes of the page's style sheet, so a plot follows light and dark. No text is smaller than FONT, and a
drawing is shown as large as it is drawn, so none becomes smaller.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FONT = 12
"""Height of every text, in pixels."""
COLOURS = 8
"""How many colours the style sheet has for series (classes ``c0`` to ``c7``)."""
_CHARACTER = 0.64 * FONT  # of the widest of the usual sans-serif fonts, on average


def text_width(text: str) -> float:
    """Return about how many pixels a text takes; rather too many than too few."""
    return sum(1.9 if ord(it) > 0x2E7F else 1.3 if it in "MWmw@%" else 0.62 if it in "iljt.,:;'|! " else 1.02
               for it in text) * _CHARACTER  # fmt: skip


def shortened(text: str, pixels: float) -> str:
    """Return the text, its middle left out where it is too wide: heads and tails of names tell them apart."""
    if text_width(text) <= pixels:
        return text
    keep = len(text)
    while keep > 2 and text_width(_cut(text, keep)) > pixels:
        keep -= 1
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    head = (keep + 1) // 2
    return f"{text[:head]}\u2026{text[len(text) - (keep - head) :]}"


def wrapped(text: str, pixels: float) -> list[str]:
    """Break a text into lines that are no wider, at spaces; a word that is too wide is shortened."""
    lines: list[str] = []
    for word in text.split() or [""]:
        word = shortened(word, pixels)
        if lines and text_width(f"{lines[-1]} {word}") <= pixels:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def number(value: float) -> str:
    """Return a value as axes and tooltips show it."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 and value == int(value) else f"{value:.4g}"


_DRAWN = 1e100


@dataclass(frozen=True)
class Scale:
    """From values to pixels; ``start`` is the pixel of ``low``: the far end turns an axis around."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, log: bool = False, pad: float = 0.06) -> Scale:
        """Return the scale that holds all values, with a little room at both ends."""
        # What nothing can have measured lies at an end of the axis, which would hold nothing else otherwise.
        found = [it for it in values if abs(it) < _DRAWN and (it > 1 / _DRAWN or not log)] or [1.0]
        low, high = min(found), max(found)
        if log:
            low, high = math.log(low), math.log(high)
        room = (high - low) * pad if high > low else 0.1 if log else abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
        return cls(math.exp(low) if log else low, math.exp(high) if log else high, start, end, log)

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log and value > 0 else low if self.log else value
        share = (at - low) / (high - low) if high > low else 0.5
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values within the scale: at most ``most``, and two or more where there is room for them."""
        made = self._log_ticks(most) if self.log else []
        return made if len(made) > 1 else _linear_ticks(self.low, self.high, most)

    def _log_ticks(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1
        for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            found = [it for it in found if self.low <= it <= self.high]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / max(most, 1)))
    step = next(power * it for it in (1, 2, 2.5, 5, 10, 20, 50) if span / (power * it) < most)
    first = math.ceil(low / step)
    ticks = [float(f"{it * step:.10g}") for it in range(first, math.floor(high / step) + 1)]
    # Rounding may put an outermost one beyond the end that it is at.
    return [it for it in ticks if low <= it <= high] or [low]


@dataclass
class Drawing:
    """An SVG picture of a fixed size that parts are added to."""

    width: int
    height: int
    label: str
    parts: list[str] = field(default_factory=list)

    def add(self, tag: str, tip: str = "", kind: str = "", text: str | None = None, **attributes: object) -> None:
        """Add one element; ``tip`` is what a browser shows when it is pointed at."""
        given = {"class": kind} if kind else {}
        given |= {name.replace("_", "-"): _written(value) for name, value in attributes.items()}
        opened = " ".join([tag, *(f'{name}="{html.escape(str(value))}"' for name, value in given.items())])
        inside = (f"<title>{html.escape(tip)}</title>" if tip else "") + (html.escape(text) if text else "")
        self.parts.append(f"<{opened}>{inside}</{tag}>" if inside else f"<{opened}/>")

    def rectangle(self, x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> None:
        self.add("rect", tip, kind, x=x, y=y, width=width, height=height)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid", tip: str = "") -> None:
        self.add("line", tip, kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def text(self, x: float, y: float, words: str, anchor: str = "start", kind: str = "", tip: str = "") -> None:
        self.add("text", tip, kind, words, x=x, y=y, **({} if anchor == "start" else {"text_anchor": anchor}))

    def mark(self, x: float, y: float, series: int, tip: str = "", kind: str = "") -> None:
        """Add a point; the shape changes where the colours begin again."""
        size, classes = 5, f"mark c{series % COLOURS} {kind}".strip()
        shape = series // COLOURS % 3
        if shape == 0:
            self.add("circle", tip, classes, cx=x, cy=y, r=size)
        elif shape == 1:
            self.add("rect", tip, classes, x=x - size, y=y - size, width=2 * size, height=2 * size)
        else:
            self.add("path", tip, classes, d=f"M{x} {y - 6}L{x + 6} {y + 5}H{x - 6}Z")

    def bottom_axis(self, scale: Scale, top: float, bottom: float, title: str) -> None:
        """Add grid lines from top to bottom, a text below each, and the axis' title below these."""
        width = abs(scale.end - scale.start)
        ticks = scale.ticks(max(2, int(width // 70)))
        shown = -math.inf
        for tick in sorted(ticks, key=scale):
            at = scale(tick)
            self.line(at, top, at, bottom)
            half = text_width(number(tick)) / 2
            middle = min(max(at, half), self.width - half)
            if middle - half > shown:
                self.text(middle, bottom + 15, number(tick), "middle", "quiet")
                shown = middle + half + 4
        self.text((scale.start + scale.end) / 2, bottom + 33, shortened(title, self.width - 8), "middle", "quiet")

    def left_axis(self, scale: Scale, left: float, right: float) -> None:
        """Add grid lines from left to right with a text before each."""
        for tick in scale.ticks(max(2, int(abs(scale.end - scale.start) // 45))):
            self.line(left, scale(tick), right, scale(tick))
            self.text(left - 6, scale(tick) + 4, number(tick), "end", "quiet")

    def markup(self, kind: str = "") -> str:
        """Return the picture as an element of a page."""
        return (
            f'<svg class="drawing{f" {kind}" if kind else ""}" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{html.escape(self.label)}">'
            f"{''.join(self.parts)}</svg>"
        )


def _written(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


# -------------------------------------------------------------------------------------------- texts beside points


@dataclass(frozen=True)
class Placed:
    """Where a text stands beside its point: its left end and base line; ``far`` ones need a line to their point."""

    x: float
    y: float
    width: float
    far: bool

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.x - 2, self.y - FONT, self.x + self.width + 2, self.y + 4


_RADII = (11, 17, 25, 36, 50, 70, 95, 125, 160)
_DEGREES = (-90, 0, 180, 90, -45, 45, -135, 135, -67, -23, 23, 67, -157, -113, 113, 157)


def place_labels(
    points: Sequence[tuple[float, float]], texts: Sequence[str], frame: tuple[float, float, float, float]
) -> list[Placed] | None:
    """Find a place beside each point so that no text touches another, a point or the frame (left, top, right, bottom).

    Returns None where the frame is too small for that. The most crowded points choose first; a text may go as far from
    its point as the frame is high, so that a frame that is made higher has room for all of them at some height.
    """
    radii = (*_RADII, *range(200, int(frame[3] - frame[1]), 40))
    marks = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]

    def crowd(index: int) -> float:
        return sum(1 / (1 + math.dist(points[index], other)) for other in points)

    placed: dict[int, Placed] = {}
    for index in sorted(range(len(points)), key=crowd, reverse=True):
        taken = [*marks, *(it.box for it in placed.values())]
        found = next((it for it in _beside(points[index], texts[index], radii) if _free(it.box, taken, frame)), None)
        if found is None:
            return None
        placed[index] = found
    return [placed[index] for index in range(len(points))]


def _beside(point: tuple[float, float], text: str, radii: Iterable[float]) -> Iterable[Placed]:
    width = text_width(text)
    for radius in radii:
        for angle in map(math.radians, _DEGREES):
            across, down = math.cos(angle), math.sin(angle)
            # The text's nearest edge is on the circle.
            x = point[0] + radius * across - width * (1 - across) / 2
            y = point[1] + radius * down + 4 + 4 * down
            yield Placed(round(x, 1), round(y, 1), width, radius > 25)


def _free(box: Sequence[float], taken: Iterable[Sequence[float]], frame: Sequence[float]) -> bool:
    inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
    return inside and not any(box[0] < it[2] and it[0] < box[2] and box[1] < it[3] and it[1] < box[3] for it in taken)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours are ``gap`` apart, as near to where they were wanted as that allows."""
    order = sorted(range(len(wanted)), key=lambda it: wanted[it])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1)) if len(wanted) > 1 else gap
    found = [0.0] * len(wanted)
    at = -math.inf
    for index in order:
        at = max(wanted[index], at + gap, low)
        found[index] = at
    at = math.inf
    for index in reversed(order):
        at = min(found[index], at - gap, high)
        found[index] = at
    return found
