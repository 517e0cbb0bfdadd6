"""A run as one page that needs nothing else: tables and figures, and a list of all answers to browse.

What the page shows is not trusted: texts are escaped, or lie in a block of JSON that the script puts in as
text. The page's policy lets no other script run and nothing be fetched. Look and behaviour are in `page.css`
and `page.js`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from weightdiff.errors import MissingDependencyError
from weightdiff.evals.outcomes import Run
from weightdiff.evals.page_data import embedded, page_data
from weightdiff.evals.run_figures import Picture, pictures
from weightdiff.evals.run_tables import (
    READING,
    Table,
    facts,
    method_table,
    overview_tables,
    row_tables,
    title_of,
)

POLICY = (
    "default-src 'none'; script-src {script}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""What the page may do: run its own script (by its hash), and be styled, which SVG does in attributes."""


def to_html(run: Run) -> bytes:
    """The page of a run, in UTF-8; without matplotlib it has no figures and says what brings them."""
    sections = [
        _reading(),
        *(_table(t) for t in overview_tables(run)),
        _figures(run),
        _table(method_table(run)),
        *(_table(t, folded=True) for t in row_tables(run.rows)),
    ]
    answers = filled(part("page_answers.html"), {"data": embedded(page_data(run))})
    return page(title_of(run), facts(run), sections, answers, part("page.js"))


def tables_html(title: str, said: Sequence[tuple[str, str]], tables: Iterable[Table]) -> bytes:
    """A page of tables alone.

    Args:
        title: its heading.
        said: facts, as names and texts.
        tables: in their order.
    """
    return page(title, said, [_table(t) for t in tables])


def page(
    title: str, said: Sequence[tuple[str, str]], sections: Sequence[str], answers: str = "", script: str = ""
) -> bytes:
    """A page in UTF-8 that needs nothing else.

    Args:
        title: its heading, as text.
        said: facts, as names and texts.
        sections: in HTML.
        answers: in HTML, below them.
        script: the one that the page's policy lets run.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = filled(
        part("page.html"),
        {
            "policy": POLICY.format(script=f"'sha256-{digest}'" if script else "'none'"),
            "title": escape(title),
            "style": part("page.css"),
            "facts": _facts(said),
            "sections": "\n".join(sections),
            "answers": answers,
            "script": f"<script>{script}</script>" if script else "",
        },
    )
    # Half of a surrogate pair is no UTF-8. Its escape is right in JSON, and harmless elsewhere.
    return text.encode("utf-8", "backslashreplace")


def part(name: str) -> str:
    """A file of this package: a style, a script or a template."""
    return (files("weightdiff.evals") / name).read_text(encoding="utf-8")


def filled(template: str, parts: dict[str, str]) -> str:
    """A template with its parts; what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _facts(said: Sequence[tuple[str, str]]) -> str:
    lines = [f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in said]
    return "\n".join(['<dl class="facts">', *lines, "</dl>"])


def _reading() -> str:
    sentences = "\n".join(f"<li>{escape(s)}</li>" for s in READING)
    return f"<section>\n<h2>How to read it</h2>\n<ul>\n{sentences}\n</ul>\n</section>"


def _table(table: Table, folded: bool = False) -> str:
    name = escape(table.title)
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in table.head)
    rows = [
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(c)}</td>" for c in row[1:])}</tr>'
        for row in table.body
    ]
    note = f'<p class="note">{escape(table.note)}</p>\n' if table.note else ""
    body = "\n".join(
        [
            f'{note}<div class="wide" role="region" aria-label="{name}" tabindex="0">',
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>",
            *rows,
            "</tbody>\n</table>\n</div>",
        ]
    )
    if folded:
        told = f" ({len(table.body)} rows)"
        return f"<details>\n<summary><h2>{name}</h2>{told}</summary>\n{body}\n</details>"
    return f"<section>\n<h2>{name}</h2>\n{body}\n</section>"


def _figures(run: Run) -> str:
    try:
        found = "\n".join(_figure(p) for p in pictures(run))
    except MissingDependencyError as error:
        found = f'<p class="note">There are no figures, because {escape(str(error))}</p>'
    return f"<section>\n<h2>Figures</h2>\n{found}\n</section>"


def _figure(picture: Picture) -> str:
    # The caption can be unfolded, so that the figure's words are there for everyone.
    name = escape(picture.title)
    return (
        f"<figure>\n<h3>{name}</h3>\n"
        f'<div class="wide" role="region" aria-label="{name}" tabindex="0">\n{picture.svg}\n</div>\n'
        "<figcaption><details><summary>In words</summary>"
        f"<p>{escape(picture.text)}</p></details></figcaption>\n</figure>"
    )
