"""Queries and their neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.styled import Styled
from rich.text import Text

from dsh_cli.show.views.shared import View, lines_table, listed, printable
from dsh_cli.words import counted

if TYPE_CHECKING:
    from dsh_cli.neighbors import Answer, Query

_LABEL = 16  # columns of a label, before it is folded
_OTHERS = 41  # columns of a row but for label and code: rank, distance, gaps, and twenty for a path
_SIGN = "^"  # under a bit that differs, for those who see no colours
_DIFFERS = "bold red"


def neighbors(answer: Answer) -> View:
    """A query's neighbours, its class, and what their distance means."""
    rescored = answer.rescored
    record: dict[str, Any] = {
        "query": answer.query.name,
        "code": answer.code,
        "predicted_label": answer.predicted.label if answer.predicted else None,
        "neighbors": [
            {"rank": n.rank, "path": n.path, "label": n.label, "code": n.code, "distance": n.distance}
            | ({"score": n.score} if rescored else {})
            for n in answer.neighbors
        ],
        "same_class_rate": answer.same_class_rate,
    }
    if rescored:
        record["rescore"] = {"by": rescored.by, "pool": rescored.pool, "cut": rescored.cut}
    plain = [
        (answer.query.name, n.rank, n.distance, n.label, n.code, *([n.score] if rescored else []), n.path)
        for n in answer.neighbors
    ]
    return View(lambda width: _table(answer, width), plain, record)


def unread(query: Query) -> View:
    """A query that has no neighbours, for it cannot be read."""
    return View(lambda width: Text(), [], {"query": query.name, "error": query.error})


def predicted_class(answer: Answer) -> str:
    """The class a query is taken for, and why, in words."""
    predicted = answer.predicted
    if predicted is None:
        return "no class is predicted, for the run has none"
    tie = ""
    if predicted.tied:
        others = listed(predicted.tied, 3)
        tie = f" (as near, with no more training pictures on the code: {others})"
    return (
        f"predicted class {printable(predicted.label)}, whose code 0x{short(predicted.code)} is "
        f"{away(predicted.distance)}{tie}"
    )


def shared_class(answer: Answer) -> str:
    """How many neighbours there are, and how many are of the query's class, in words."""
    among = f"among {len(answer.database):,} of the {printable(answer.database.name)}"
    if not answer.neighbors:
        within = "" if answer.radius is None else f" within {counted(answer.radius, 'bit')}"
        return f"no neighbour{within} {among}"
    if answer.predicted is None:
        return f"{counted(len(answer.neighbors), 'neighbour')} {among}"
    return (
        f"{answer.sharing:,} of {counted(len(answer.neighbors), 'neighbour')} of class "
        f"{printable(answer.predicted.label)}, {among}"
    )


def rescored(answer: Answer) -> str:
    """How the neighbours were ordered anew, in words; nothing where they were not."""
    how = answer.rescored
    if how is None or not answer.neighbors:
        return ""
    by = "outputs" if how.by == "outputs" else "outputs of the query against codes"
    cut = "" if how.cut is None else f"; of those {away(how.cut)} the first added"
    return f"rescored by {by}: the {counted(how.pool, 'picture')} nearest by Hamming distance{cut}"


def score(value: float) -> str:
    """A score as people read it."""
    return f"{value:.3f}"


def calibration(answer: Answer) -> str:
    """What the distances mean by the run's held-out pictures, in words; nothing where there are none to explain."""
    known = answer.calibration
    if answer.predicted is None:
        return ""
    if known is None:
        return "calibration: there are no held-out pictures here to tell what a distance means"
    distances = [neighbor.distance for neighbor in answer.neighbors]
    ends = dict.fromkeys(end(distances) for end in (min, max) if distances)
    told: list[str] = []
    of_one_class = " are of one class"  # said once
    for distance in ends:
        rate, pairs = known.rate(distance), counted(int(known.pairs[distance]), "pair")
        if rate is None:
            told.append(f"no pair is {away(distance)}")
        else:
            told.append(f"{rate:.1%} of {pairs} {away(distance)}{of_one_class}")
            of_one_class = ""
    return f"calibration: {', '.join(told)} ({known.split} against train)" if told else ""


def away(distance: int) -> str:
    """A distance in words."""
    return f"{counted(distance, 'bit')} away"


def short(code: str, most: int = 32) -> str:
    """A code's text, cut where it is long."""
    return code if len(code) <= most else code[: most - 3] + "..."


def _table(answer: Answer, width: int) -> RenderableType:
    name, code = printable(answer.query.name), f"0x{answer.code}"
    heading = name if name == code else f"{name}: {code}"
    lines: list[RenderableType] = [Styled(heading, "bold")]
    if answer.neighbors:
        lines.append(_rows(answer, width))
    lines += [predicted_class(answer), shared_class(answer)]
    lines += filter(None, [rescored(answer), calibration(answer)])
    return Group(*lines, Text())


def _is_long(answer: Answer) -> bool:
    """Whether the code is too long for a column of its own at 80 columns."""
    return answer.bits > 64


def _rows(answer: Answer, width: int) -> RenderableType:
    longest = min(_LABEL, max([5, *(len(printable(n.label or "-")) for n in answer.neighbors)]))
    scores = [score(n.score) for n in answer.neighbors if n.score is not None]
    more = max(len("score"), *map(len, scores)) + 3 if scores else 0  # 3: the gap
    binary = longest + len(answer.code) + answer.bits + _OTHERS + more <= width
    room = width - longest - 24 - more if _is_long(answer) else width  # 24: rank, distance and gaps
    table = lines_table()
    table.add_column("rank", justify="right")
    table.add_column("distance", justify="right")
    if scores:
        table.add_column("score", justify="right")
    table.add_column("label", max_width=_LABEL, overflow="fold")
    if _is_long(answer):
        table.add_column("path, code, bits off", overflow="fold")
    else:
        table.add_column(f"code, {_SIGN} differs" if binary else "code, bits off", no_wrap=True)
        table.add_column("path", overflow="fold")
    for n in answer.neighbors:
        code = marked(n.code, answer.code, answer.bits if binary else 0, room)
        cells = [Group(n.path, code)] if _is_long(answer) else [code, n.path]
        scored = [] if n.score is None else [score(n.score)]
        table.add_row(str(n.rank), str(n.distance), *scored, n.label or "-", *cells)
    return table


def marked(code: str, query: str, binary: int, room: int) -> Text:
    """A code in lines of `room` columns, and under each what differs from the query's.

    Under a binary digit stands a sign, under a hex digit the number of its bits that differ.

    Args:
        code: hex digits of a neighbour.
        query: those of the query.
        binary: so many binary digits are shown beside the hex ones, and marked in their place; 0: none.
        room: at least 3.
    """
    lead = f"0x{code} " if binary else "0x"
    mine, theirs = (f"{int(text, 16):0{binary}b}" if binary else text for text in (code, query))
    differs = [(int(a, 16) ^ int(b, 16)).bit_count() for a, b in zip(mine, theirs, strict=True)]
    lines, step = [], max(1, room - len(lead))
    for start in range(0, len(mine), step):
        line, signs = Text(lead if start == 0 else " " * len(lead)), Text(" " * len(lead))
        for digit, bits in zip(mine[start : start + step], differs[start : start + step], strict=True):
            line.append(digit, _DIFFERS if bits else None)
            signs.append((_SIGN if binary else str(bits)) if bits else " ", _DIFFERS if bits else None)
        lines.append(line)
        if any(differs[start : start + step]):
            signs.rstrip()
            lines.append(signs)
    return Text("\n").join(lines)
