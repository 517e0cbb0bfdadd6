"""Answers, comparisons and inspections as HTML of the app; what comes from elsewhere is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from weightdiff.diffs.inspection import Inspection
from weightdiff.errors import one_line
from weightdiff.methods.base import Answer
from weightdiff.methods.evidence import evidence_word


def text(value: str) -> str:
    """A text that shows as it is: neither HTML nor the placeholders of a template."""
    return escape(one_line(value)).replace("{", "&#123;").replace("$", "&#36;")


def failure(error: Exception) -> str:
    """What went wrong, as one sentence."""
    return f'<p role="alert" class="wd-error">{text(str(error) or type(error).__name__)}</p>'


def note(words: str) -> str:
    """A line that tells how far things are."""
    return f'<p role="status" class="wd-note">{text(words)}</p>'


def answered(question: str, answer: Answer, beside: Sequence[tuple[str, str]] = ()) -> str:
    """An answer with what is known about it, and what others say to the same question.

    Args:
        question: as it was put.
        answer: of the interpreter.
        beside: (who, what they say).
    """
    facts = []
    if answer.probability is not None:
        facts.append(("right", f"{100 * answer.probability:.0f} %"))
    if answer.evidence is not None:
        facts.append(("evidence", f"{answer.evidence:+.1f} nats ({evidence_word(answer.evidence)})"))
    if answer.notes:
        facts.append(("read from", answer.notes))
    if answer.withheld:
        facts.append(("withheld", answer.withheld))
    facts += list(beside)
    rows = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in facts)
    return (
        f'<div class="wd-answer"><p class="wd-question">{text(question)}</p>'
        f'<p class="wd-said" role="status">{text(answer.text)}</p><dl>{rows}</dl></div>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table whose cells are texts; it scrolls by itself where it is too wide."""
    columns = "".join(f'<th scope="col">{text(c)}</th>' for c in head)
    body = "".join(
        f'<tr><th scope="row">{text(r[0])}</th>{"".join(f"<td>{text(c)}</td>" for c in r[1:])}</tr>'
        for r in rows
    )
    return (
        f'<div class="wd-wide" tabindex="0" role="region" aria-label="{text(label)}">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def inspected(found: Inspection) -> str:
    """What a diff is made of, and what is odd about it."""
    largest = sorted(found.modules, key=lambda m: -m.frobenius)[:8]
    total = sum(m.frobenius**2 for m in found.modules) or 1.0
    rows = [
        (
            m.name,
            f"{m.frobenius:.3g}",
            f"{m.rank_99} of {m.rank}" if m.rank is not None else str(m.rank_99),
            f"{100 * m.frobenius**2 / total:.1f} %",
        )
        for m in largest
    ]
    signs = Counter(s.code for s in found.signs)
    odd = (
        "nothing is odd about its structure"
        if not signs
        else "odd: " + ", ".join(f"{code} ({n})" if n > 1 else code for code, n in signs.items())
    )
    lead = f"{len(found.modules)} modules, {found.num_parameters:,} numbers, norm {found.norm:.3g}; {odd}"
    listed = "".join(f"<li>{text(s.module)}: {text(s.text)}</li>" for s in found.signs[:12])
    head = ("largest modules", "norm", "99 % of it in", "share")
    return f"{note(lead)}{table(head, rows, 'largest modules')}" + (f"<ul>{listed}</ul>" if listed else "")
