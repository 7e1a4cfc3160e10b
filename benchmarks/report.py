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

BEGIN, END = "<!-- The table: make bench -->", "<!-- The end of the table -->"


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

    :ivar words: the promise
    :ivar limit: what it comes to in this run
    :ivar at_least: more is better
    """

    words: str
    limit: float
    at_least: bool = False


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
        if self.requests is not None and self.allowed is not None:
            said += [self.requests.reads <= self.allowed.reads, self.requests.writes <= self.allowed.writes]
        return all(said) if said else None

    @property
    def verdict(self) -> str:
        return {None: "", True: "yes", False: "**no**"}[self.is_met]

    @property
    def shown_requests(self) -> str:
        if self.requests is None:
            return ""
        counts = {"reads": self.requests.reads, "writes": self.requests.writes, "blocking": self.requests.waits}
        said = [f"{_count(count / self.per)} {name}" for name, count in counts.items() if count]
        return (", ".join(said) or "0") + (f" a {self.things}" if self.things and said else "")


def _count(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) or number >= 100 else f"{number:.2f}"


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
        f"{goal.words}: {show(goal.limit)}" if goal else "",
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

NAMES, BARS, NUMBERS, LINE, TOP = 330, 400, 70, 24, 44
"""Widths of the chart's columns, height of a line and of its head, in pixels."""

MOST = 2.0
"""Where the bars end: what is further off is cut, and its number tells."""

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .met { fill: #2da44e } .missed { fill: #d4700a } .goal { stroke: #1f2328; stroke-dasharray: 4 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .met { fill: #3fb950 } .missed { fill: #f0883e } .goal { stroke: #e6edf3 }
  }
"""


def chart_of(results: Sequence[Result]) -> str:
    """The parts of their goals that the rows use, as an SVG: a bar that ends before the line keeps its promise."""
    bars = [(result, result.share) for result in results]
    drawn = [(result.work, share) for result, share in bars if share is not None]
    width, height = NAMES + BARS + NUMBERS, TOP + LINE * len(drawn) + 8
    goal = NAMES + BARS / MOST
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" aria-label="What part of its goal each row uses">',
        f"<style>{STYLE}</style>",
        f'<text x="{goal}" y="18" text-anchor="middle">the goal</text>',
        f'<line class="goal" x1="{goal}" y1="26" x2="{goal}" y2="{height - 4}"/>',
    ]
    for place, (work, share) in enumerate(drawn):
        lines += _bar(TOP + place * LINE, work, share)
    return "\n".join([*lines, "</svg>", ""])


def _bar(top: float, work: str, share: float) -> list[str]:
    length = min(share, MOST) / MOST * BARS
    kind = "met" if share <= 1 else "missed"
    return [
        f'<text x="{NAMES - 10}" y="{top + 13}" text-anchor="end">{escape(work.replace("`", ""))}</text>',
        f'<rect class="{kind}" x="{NAMES}" y="{top}" width="{max(length, 1):.1f}" height="{LINE - 7}" rx="2"/>',
        f'<text x="{NAMES + length + 6:.1f}" y="{top + 13}">{share:.2f}</text>',
    ]


# -- the page ------------------------------------------------------------------------------------------------


def page_with(page: str, table: str) -> str:
    """A page with a table between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def write(docs: Path, results: Sequence[Result], conditions: str) -> None:
    """Put the table and the chart into the documentation.

    :param conditions: a sentence on where it was measured
    """
    page = docs / "benchmarks.md"
    page.write_text(page_with(page.read_text(), f"{table_of(results)}\n\n{conditions}"))
    (docs / "benchmarks.svg").write_text(chart_of(results))
