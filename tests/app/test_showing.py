"""What the app shows of other people's texts is text."""

from __future__ import annotations

import pytest

from weightdiff.app import showing
from weightdiff.app.ui import _plain
from weightdiff.diffs.inspection import inspect
from weightdiff.methods.base import Answer
from weightdiff.training.factory import random_diff

EVIL = '<img src=x onerror="alert(1)"> {{value}} ${value}\x1b[2J'


def test_nothing_becomes_markup_or_a_placeholder():
    answer = Answer(EVIL, evidence=3.2, notes=EVIL, probability=0.5, withheld=EVIL)
    for shown in (
        showing.answered(EVIL, answer, [(EVIL, EVIL)]),
        showing.table((EVIL,), [(EVIL, EVIL)], EVIL),
        showing.failure(ValueError(EVIL)),
        showing.note(EVIL),
    ):
        assert "<img" not in shown
        assert "{" not in shown
        assert "$" not in shown
        assert "\x1b" not in shown
        assert "&lt;img" in shown


def test_an_answer_tells_what_is_known_of_it():
    shown = showing.answered("what ?", Answer("chess", evidence=1.5, probability=0.97), [("without", "no")])
    for part in ("chess", "97 %", "+1.5 nats (weak)", "without", "what ?"):
        assert part in shown


def test_an_inspection_is_told(embedded_base):
    found = inspect(random_diff(embedded_base.spec, 2, 1, 1.0))
    shown = showing.inspected(found)
    assert f"{len(found.modules)} modules" in shown
    assert shown.count("<tr>") == 9


@pytest.mark.parametrize(
    ("cell", "safe"), [("chess", "chess"), ("=1+1", "'=1+1"), ("-x", "'-x"), ("@a", "'@a")]
)
def test_no_cell_of_a_csv_is_a_formula(cell, safe):
    assert _plain(cell) == safe
