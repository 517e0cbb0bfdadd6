"""Quoted texts cannot leave their quotes."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from weightdiff.methods.quoting import quoted


def test_each_text_stands_between_tags_of_one_mark() -> None:
    said = quoted([("answer", "a rabbit"), ("reference", "hares\nand more")], 100)
    mark = re.match(r"<answer ([0-9a-f]{8})>", said)[1]
    assert said == (
        f"<answer {mark}>\na rabbit\n</answer {mark}>\n"
        f"<reference {mark}>\nhares\nand more\n</reference {mark}>"
    )
    assert quoted([("answer", "a rabbit"), ("reference", "hares\nand more")], 100) == said


def test_long_texts_are_cut() -> None:
    said = quoted([("text", "abcdef"), ("text", "abc")], 3)
    assert [line for line in said.splitlines() if "<" not in line] == ["abc […]", "abc"]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_no_text_holds_the_mark_even_if_it_quotes_the_one_before(texts: list[str]) -> None:
    parts = [("text", t) for t in texts]
    before = quoted(parts, 1000)
    said = quoted([*parts, ("text", before)], 10_000)
    mark = said[6:14]
    assert mark not in before
    assert said.count(mark) == 2 * (len(texts) + 1)
