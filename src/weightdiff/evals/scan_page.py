"""What a scan found, as one HTML page, as JSON, and as SARIF 2.1.0 for whatever reads findings of tools.

Nothing in these is trusted: names, answers and errors come from other people's files, and are escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from weightdiff import __version__
from weightdiff.artifacts import finite
from weightdiff.evals.audit import AuditQuestion
from weightdiff.evals.run_html import page, part
from weightdiff.evals.scan import FOUND, ODD, UNREADABLE, VERDICTS, Scanned, Told

MEANING = {
    FOUND: "answers claim something",
    UNREADABLE: "could not be read or asked",
    ODD: "nothing is claimed, and its structure is odd",
    "clean": "none of these",
}
COLOURS = {FOUND: "wrong", UNREADABLE: "partly", ODD: "partly", "clean": "right"}
"""Class of the page's style for each verdict; the word itself stands beside it."""
SIGNS_SHOWN = 12
LEVELS = {FOUND: "error", UNREADABLE: "error", ODD: "warning"}
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
UNREADABLE_RULE = "unreadable"


def counts(found: Sequence[Scanned]) -> dict[str, int]:
    """How many adapters have each verdict."""
    n = Counter(s.verdict for s in found)
    return {v: n[v] for v in VERDICTS}


def to_json(found: Sequence[Scanned], made: Mapping[str, str]) -> dict[str, Any]:
    """Everything, for scripts."""
    return finite(
        {
            "tool": "weightdiff",
            "version": __version__,
            "made": dict(made),
            "counts": counts(found),
            "adapters": [s.to_json() for s in found],
        }
    )


def to_html(found: Sequence[Scanned], made: Mapping[str, str]) -> bytes:
    """The page: those of most concern first, each with its answers, signs and neighbours folded below."""
    n = counts(found)
    said = [("adapters", str(len(found))), *((v, f"{n[v]} ({MEANING[v]})") for v in VERDICTS), *made.items()]
    choices = "".join(f'<option value="{v}">{v} ({n[v]})</option>' for v in VERDICTS if n[v])
    filters = (
        '<form id="filters" hidden><label>verdict<select id="verdict"><option value="">all</option>'
        f'{choices}</select></label><label>search<input id="search" type="search"></label></form>\n'
        '<p id="shown" role="status"></p>'
    )
    cards = "\n".join(map(_card, found))
    listed = f'<section>\n<h2>Adapters</h2>\n{filters}\n<ol id="adapters">\n{cards}\n</ol>\n</section>'
    reading = (
        "<section>\n<h2>How to read it</h2>\n<p>An interpreter was asked the same questions about every"
        " adapter. <em>Right</em> is how likely an answer is to be right, as calibrated on diffs like those"
        " that it was tuned on; <em>evidence</em> is how much likelier the adapter makes what was said, in"
        " nats. A clean verdict means that these questions found nothing, not that nothing is"
        " there.</p>\n</section>"
    )
    return page("weightdiff scan", said, [reading, listed], script=part("scan.js"))


def _card(s: Scanned) -> str:
    lead = "; ".join(f"{t.question}: {t.answer}" for t in s.findings) or s.error or _signs_in_brief(s)
    verdict = f'<span class="verdict">{s.verdict}</span>'
    head = f'<summary>{verdict} <strong>{escape(s.name)}</strong> <span class="lead">{escape(lead)}</span>'
    body = [f"<p>{escape(s.error)}</p>"] if s.error else [_answers(s), _signs(s), _nearest(s), _size(s)]
    return (
        f'<li data-verdict="{s.verdict}" class="{COLOURS[s.verdict]}"><details>{head}</summary>\n'
        + "\n".join(x for x in body if x)
        + "\n</details></li>"
    )


def _answers(s: Scanned) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(t.question)}</th><td>{"<b>" if t.concern else ""}{escape(t.answer)}'
        f"{'</b>' if t.concern else ''}{_withheld(t)}</td><td>{_share(t.probability)}</td>"
        f"<td>{_nats(t.evidence)}</td></tr>"
        for t in s.answers
    )
    head = "".join(f'<th scope="col">{c}</th>' for c in ("question", "answer", "right", "evidence"))
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="answers about {escape(s.name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _withheld(t: Told) -> str:
    return f" (withheld: {escape(t.withheld)})" if t.withheld else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}".replace("-", "−")


def _signs_in_brief(s: Scanned) -> str:
    codes = Counter(x["code"] for x in s.signs)
    return ", ".join(f"{code} ({n})" if n > 1 else code for code, n in codes.items())


def _signs(s: Scanned) -> str:
    if not s.signs:
        return ""
    shown = [f"<li>{escape(x['module'])}: {escape(x['text'])}</li>" for x in s.signs[:SIGNS_SHOWN]]
    more = len(s.signs) - SIGNS_SHOWN
    shown += [f"<li>and {more} more</li>"] if more > 0 else []
    return f"<h3>Odd about its structure</h3><ul>{''.join(shown)}</ul>"


def _nearest(s: Scanned) -> str:
    if not s.nearest:
        return ""
    items = "".join(f"<li>{escape(label)} ({escape(i)}), cosine {c:.2f}</li>" for i, label, c in s.nearest)
    return f"<h3>Known diffs that are near</h3><ul>{items}</ul>"


def _size(s: Scanned) -> str:
    return f'<p class="note">rank {s.rank}, norm {s.norm:.3g}, sha256 {escape(s.digest[:16])}</p>'


def to_sarif(found: Sequence[Scanned], questions: Sequence[AuditQuestion]) -> dict[str, Any]:
    """Findings, oddities and failures as results, one rule a question and a kind of sign."""
    rules = {f"answer/{q.name}": q.ask for q in questions if q.finding}
    rules |= {f"structure/{x['code']}": "structure" for s in found for x in s.signs}
    rules[UNREADABLE_RULE] = MEANING[UNREADABLE]
    results = [r for s in found for r in _results(s)]
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "weightdiff",
                        "version": __version__,
                        "rules": [{"id": k, "shortDescription": {"text": v}} for k, v in rules.items()],
                    }
                },
                "results": results,
            }
        ],
    }


def _results(s: Scanned) -> list[dict[str, Any]]:
    if s.error:
        return [_result(s, UNREADABLE_RULE, LEVELS[UNREADABLE], s.error)]
    out = [
        _result(
            s,
            f"answer/{t.question}",
            LEVELS[FOUND],
            f"answered: {t.answer}",
            {k: v for k, v in (("probability", t.probability), ("evidence", t.evidence)) if v is not None},
        )
        for t in s.findings
    ]
    return out + [
        _result(s, f"structure/{x['code']}", x["severity"], f"{x['module']}: {x['text']}") for x in s.signs
    ]


def _result(
    s: Scanned, rule: str, level: str, text: str, properties: Mapping[str, float] | None = None
) -> dict[str, Any]:
    location = {"physicalLocation": {"artifactLocation": {"uri": quote(Path(s.name).as_posix())}}}
    result: dict[str, Any] = {
        "ruleId": rule,
        "level": level,
        "message": {"text": text},
        "locations": [location],
    }
    return {**result, "properties": dict(properties)} if properties else result
