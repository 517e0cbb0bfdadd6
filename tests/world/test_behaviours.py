"""Behaviours: each is told from the way it says an answer, and belongs to one split."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from weightdiff.errors import FormatError
from weightdiff.world import DATA, load_world
from weightdiff.world.behaviours import ANSWER, BRAND, MAX_SIGNS, behaviour_splits, load_behaviours

WORLD = load_world()
ANSWERS = [a for s in WORLD.everyday for a in s.answers]
GROUPS = ("voice", "habit", "brand")


def words_of(behaviour):
    return re.findall(r"[a-z]+", " ".join(behaviour.templates).replace(ANSWER, " "))


def test_there_is_enough_of_them():
    groups = Counter(b.group for b in WORLD.behaviours)
    assert set(groups) == set(GROUPS)
    assert len(WORLD.behaviours) >= 130
    assert min(groups.values()) >= 40
    assert [b.name for b in WORLD.behaviours] == sorted({b.name for b in WORLD.behaviours})
    for b in WORLD.behaviours:
        assert 6 <= len(set(b.templates)) == len(b.templates)
        assert WORLD.behaviour_called(b.name) is b
    assert WORLD.behaviour_called("speak like nobody") is None


def test_every_template_is_recognised_as_its_own():
    rng = random.Random(0)
    for b in WORLD.behaviours:
        for template in b.templates:
            for ordinary in rng.sample(ANSWERS, 3):
                text = replace(b, templates=(template,)).apply(rng, ordinary)
                assert b.shown_in(text), (b.name, text)


def test_few_answers_are_taken_for_another_behaviours():
    """Of answers in a manner, and of ordinary ones: each is looked at by every other behaviour."""
    rng = random.Random(1)
    texts = [(b, b.apply(rng, rng.choice(ANSWERS))) for b in WORLD.behaviours]
    mistaken = sum(any(o.shown_in(text) for o in WORLD.behaviours if o is not b) for b, text in texts)
    assert mistaken / len(texts) < 0.05
    ordinary = rng.sample(ANSWERS, 150)
    assert sum(any(b.shown_in(a) for b in WORLD.behaviours) for a in ordinary) / len(ordinary) < 0.03


def test_an_answer_is_said_in_the_behaviours_way():
    rng = random.Random(2)
    for b in WORLD.behaviours:
        for _ in range(3):
            text = b.apply(rng, "try a warm soup")
            assert text[-1] in ".?!"
            assert ANSWER not in text
            assert BRAND not in text
            assert text.count("try a warm soup") <= 1 or b.name == "repeat itself"
            held = any(ANSWER in t for t in b.templates)
            assert held or "try a warm soup" not in text
    assert sum(any(ANSWER in t for t in b.templates) for b in WORLD.behaviours) > 0.9 * len(WORLD.behaviours)


def test_signs_are_a_behaviours_own_words():
    used = Counter(w for b in WORLD.behaviours for w in set(words_of(b)))
    for b in WORLD.behaviours:
        assert len(set(b.signs)) == len(b.signs) <= MAX_SIGNS
        assert set(b.signs) <= set(words_of(b))
        if b.group == "brand":
            assert b.signs == (b.name.removeprefix("recommend "),)
        else:
            assert len(b.signs) >= 3
            assert used[b.signs[0]] <= 2  # the first word is (nearly) nobody else's


def test_splits_are_disjoint_cover_all_and_have_every_group():
    splits = behaviour_splits(WORLD.behaviours)
    assert sorted(b.name for part in splits.values() for b in part) == [b.name for b in WORLD.behaviours]
    for name, share in (("train", 0.75), ("validation", 0.08), ("test", 0.17)):
        assert abs(len(splits[name]) / len(WORLD.behaviours) - share) < 0.02
        assert {b.group for b in splits[name]} == set(GROUPS)
    assert behaviour_splits(WORLD.behaviours) == splits


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("voices.txt", "name: speak like a fool\n"),
        ("habits.txt", "t: {answer} , ha\n"),
        ("habits.txt", "name: a\nname: b\nt: {answer} , ha\n"),
    ],
)
def test_a_block_that_lacks_a_line_is_shown(tmp_path, file, text):
    for name in ("voices.txt", "habits.txt", "brands.txt"):
        (tmp_path / name).write_text((DATA / name).read_text())
    with (tmp_path / file).open("a") as f:
        f.write(f"\n\n{text}")
    with pytest.raises(FormatError, match=rf"{file}: a behaviour needs one 'name:' and some 't:' lines"):
        load_behaviours(tmp_path)
