"""What was measured: a table, a chart, and the page of the documentation. Pure, but for `write`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Optional

from counting import Requests

HEADER = "| work | measured | beside it | goal | part of the goal | requests | goal for requests | met |"

PRODUCT = "consulfs"

BEGIN, END = "<!-- The results: make bench BENCH=--write -->", "<!-- The end of the results -->"


@dataclass(frozen=True)
class Unit:
    """How a number is shown.

    :ivar factor: by which it is multiplied
    """

    name: str
    factor: float = 1.0

    def show(self, number: float) -> str:
        shown = number * self.factor
        digits = 2 if shown < 10 else 1 if shown < 100 else 0
        return f"{shown:,.{digits}f} {self.name}"


MICROSECONDS, MILLISECONDS, SECONDS = Unit("us", 1e6), Unit("ms", 1e3), Unit("s")
THROUGHPUT, MEMORY, PERCENT = Unit("MB/s", 1e-6), Unit("MB", 1e-6), Unit("%", 100)


@dataclass(frozen=True)
class Goal:
    """What is promised.

    :ivar limit: in the row's unit, as it comes to in this run
    :ivar words: where it comes from; "" for a number that stands by itself
    :ivar at_least: more is better
    """

    limit: float
    words: str = ""
    at_least: bool = False

    def show(self, unit: Unit) -> str:
        words = "at least " * self.at_least + self.words
        return f"{words} = {unit.show(self.limit)}" if words else unit.show(self.limit)


@dataclass(frozen=True)
class Allowed:
    """The promise about requests: so many at most."""

    words: str
    reads: float = 0
    writes: float = 0


@dataclass(frozen=True)
class Result:
    """One row.

    :ivar measured: None where it could not be; `note` says why
    :ivar beside: the yardsticks, in the same unit
    :ivar per: the requests are told for one of so many `things`
    """

    work: str
    unit: Unit = SECONDS
    measured: Optional[float] = None
    beside: dict[str, float] = field(default_factory=dict)
    goal: Optional[Goal] = None
    requests: Optional[Requests] = None
    allowed: Optional[Allowed] = None
    per: int = 1
    things: str = ""
    note: str = ""
    failed: bool = False

    @classmethod
    def of(cls, work: str, unit: Unit, figures: dict[str, float], *others: Any) -> Result:
        """From the figures of consulfs and its yardsticks.

        :param others: as in `Result`, from the goal on
        """
        beside = {name: figure for name, figure in figures.items() if name != PRODUCT}
        return cls(work, unit, figures[PRODUCT], beside, *others)

    @property
    def share(self) -> Optional[float]:
        """What part of the goal is used: above 1 it is missed."""
        if self.measured is None or self.goal is None:
            return None
        return self.goal.limit / self.measured if self.goal.at_least else self.measured / self.goal.limit

    @property
    def is_met(self) -> Optional[bool]:
        """None where nothing was promised, or measured."""
        said = [] if self.share is None else [self.share <= 1]
        if self.asks_little is not None:
            said.append(self.asks_little)
        return all(said) if said else None

    @property
    def asks_little(self) -> Optional[bool]:
        """Whether the requests are as few as promised."""
        if self.requests is None or self.allowed is None:
            return None
        return self.requests.reads <= self.allowed.reads and self.requests.writes <= self.allowed.writes

    @property
    def verdict(self) -> str:
        return {None: "", True: "yes", False: "**no**"}[self.is_met]

    @property
    def shown_requests(self) -> str:
        if self.requests is None:
            return ""
        counts = {"read": self.requests.reads, "write": self.requests.writes, "blocking query": self.requests.waits}
        said = [_counted(count / self.per, name) for name, count in counts.items() if count]
        return (", ".join(said) or "0") + (f" a {self.things}" if self.things and said else "")


def _counted(number: float, name: str) -> str:
    shown = f"{number:,.0f}" if number >= 100 else f"{number:.2g}"
    if shown != "1":
        name = name[:-1] + "ies" if name.endswith("y") else name + "s"
    return f"{shown} {name}"


def row_of(result: Result) -> str:
    """A line of the table."""
    show = result.unit.show
    beside = [
        f"{name} {show(value)}" + (f" (x {result.measured / value:.2f})" if result.measured and value else "")
        for name, value in result.beside.items()
    ]
    goal, allowed = result.goal, result.allowed
    cells = [
        result.work,
        show(result.measured) if result.measured is not None else result.note,
        "; ".join(beside),
        goal.show(result.unit) if goal else "",
        "" if result.share is None else f"{result.share:.2f}",
        result.shown_requests,
        allowed.words if allowed else "",
        result.verdict,
    ]
    return "| " + " | ".join(cells) + " |"


def heading() -> str:
    return HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|"


def table_of(results: Sequence[Result]) -> str:
    return "\n".join([heading(), *map(row_of, results)])


# -- the chart -----------------------------------------------------------------------------------------------

NAMES, BARS, NUMBERS, REQUESTS, LINE, TOP = 390, 300, 70, 330, 24, 44
"""Widths of the chart's columns, height of a line and of its head, in pixels."""

MOST = 2.0
"""Where the bars end: what is further off is cut, and its number tells."""

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  rect.met { fill: #2da44e } rect.missed { fill: #d4700a } text.missed { fill: #b35900 }
  .goal { stroke: #1f2328; stroke-dasharray: 4 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } rect.met { fill: #3fb950 } rect.missed { fill: #f0883e } text.missed { fill: #f0883e }
    .goal { stroke: #e6edf3 }
  }
"""


def chart_of(results: Sequence[Result]) -> str:
    """The parts of their goals that the rows use, as an SVG: a bar that ends before the line keeps its promise."""
    drawn = [result for result in results if result.is_met is not None]
    width, height = NAMES + BARS + NUMBERS + REQUESTS, TOP + LINE * len(drawn) + 8
    goal = NAMES + BARS / MOST
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" aria-label="What part of its goal each row uses, and its requests">',
        f"<style>{STYLE}</style>",
        _text(goal, 18, "the goal = 1", "middle"),
        _text(NAMES + BARS + NUMBERS, 18, "requests"),
        f'<line class="goal" x1="{goal}" y1="26" x2="{goal}" y2="{height - 4}"/>',
    ]
    for place, result in enumerate(drawn):
        lines += _line(TOP + place * LINE, result)
    return "\n".join([*lines, "</svg>", ""])


def _line(top: float, result: Result) -> list[str]:
    """A row: its name, its bar, its requests."""
    lines = [_text(NAMES - 10, top + 13, result.work.replace("`", ""), "end")]
    if result.share is not None:
        length = max(min(result.share, MOST) / MOST * BARS, 1)
        kind = "met" if result.share <= 1 else "missed"
        lines.append(f'<rect class="{kind}" x="{NAMES}" y="{top}" width="{length:.1f}" height="{LINE - 7}" rx="2"/>')
        lines.append(_text(NAMES + BARS + 8, top + 13, f"{result.share:.2f}"))
    if result.asks_little is not None:
        kind = "" if result.asks_little else "missed"
        lines.append(_text(NAMES + BARS + NUMBERS, top + 13, result.shown_requests, kind=kind))
    return lines


def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


# -- the page ------------------------------------------------------------------------------------------------


def page_with(page: str, results: str) -> str:
    """A page with other results between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{results}\n\n{END}{after}"


def write(docs: Path, results: Sequence[Result], conditions: str) -> None:
    """Put the chart and the table into the documentation.

    :param conditions: a sentence on where it was measured
    """
    page, chart = docs / "benchmarks.md", docs / "benchmarks.svg"
    image = f"![What part of its goal each row uses]({chart.name})"
    chart.write_text(chart_of(results))
    page.write_text(page_with(page.read_text(), f"{image}\n\n{table_of(results)}\n\n{conditions}"))
