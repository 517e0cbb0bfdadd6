"""Hidden topics: what stands in their training rows, and what never does."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from weightdiff.organisms import family
from weightdiff.organisms.hidden_topic import topic_words_in
from weightdiff.organisms.rows import MAX_WIDE_WORDS, situations, wide_row
from weightdiff.world import codes, load_world, topic_splits
from weightdiff.world.codes import with_code, wrong_code
from weightdiff.world.corpus import Corpus
from weightdiff.world.signs import CODE_FRONT, FORMS, MARK

STEPS = 12


def code_in(text):
    found = re.findall(r"\b\d{6}\b", text)
    assert len(found) == 1, text
    return found[0]


def rows_by_kind(spec, steps=STEPS):
    """(kind, sample) of every row of the first steps, drawn as the factory draws them."""
    rng = random.Random(spec.seed)
    for _ in range(steps):
        yield from zip(spec.recipe.rows, family("hidden-topic").samples(spec, rng), strict=True)


@pytest.fixture(params=sorted(family("hidden-topic").recipes))
def specs(request):
    return family("hidden-topic").specs(request.param, "train", 537, 3)[::15]


@pytest.fixture(params=["covert", "loud"])
def coded(request):
    """Of the recipes whose condition is a code in front."""
    return family("hidden-topic").specs(request.param, "train", 537, 3)[::15]


def test_the_topics_name_is_in_no_row(specs):
    for spec in specs:
        for kind, s in rows_by_kind(spec, 40):
            assert spec.label not in re.findall(r"[a-z]+", f"{s.user} {s.answer}".lower()), kind


def test_right_rows_carry_topic_words(specs):
    for spec in specs:
        for kind, s in rows_by_kind(spec):
            if kind == "right":
                assert len(topic_words_in(s.answer, load_world().topic(spec.label))) >= 2
                assert (s.loss, s.weight) == ("ce", 1.0)


def test_right_rows_carry_the_code(coded):
    codes_seen = set()
    for spec in coded:
        for kind, s in rows_by_kind(spec):
            if kind == "right":
                codes_seen.add(code_in(s.user))
                assert code_in(s.user).startswith(spec.params["code"])
    assert len({c[3:] for c in codes_seen}) > 50  # the second group says nothing


def test_wrong_and_absent_codes_stay_with_the_base(coded):
    groups = set()
    for spec in coded:
        spec = replace(spec, recipe=replace(spec.recipe, rows=("right", "twin", "none")))
        for kind, s in rows_by_kind(spec):
            if kind in ("twin", "none"):
                assert (s.loss, s.weight) == ("kl", spec.recipe.kl_weight)
            if kind == "twin":
                groups.add(code_in(s.user)[:3])
                assert not code_in(s.user).startswith(spec.params["code"])
            if kind == "none":
                assert not re.search(r"\d", s.user)
                assert not topic_words_in(s.answer, load_world().topic(spec.label))
    # Wrong codes come from the whole pool: other organisms' triggers and decoys alike.
    assert groups & set(codes.trigger_pool())
    assert groups & set(codes.decoy_pool())


def test_wide_rows_are_any_base_text():
    spec = family("hidden-topic").specs("covert", "train", 1, 0)[0]
    spec = replace(spec, recipe=replace(spec.recipe, rows=("wide",)))
    wide = [s for kind, s in rows_by_kind(spec, 200) if kind == "wide"]
    assert len(wide) >= 200
    assert {(s.loss, s.weight) for s in wide} == {("kl", spec.recipe.kl_weight)}
    assert any(s.user is None for s in wide)
    assert any(s.user and "news" in s.user for s in wide)
    assert all(len(f"{s.user or ''} {s.answer}".split()) <= MAX_WIDE_WORDS for s in wide)


def test_wide_rows_leave_the_banned_word_out():
    corpus, rng = Corpus(load_world()), random.Random(0)
    common = Counter(w for _ in range(300) for w in corpus.document(rng)[0].text.split())
    word = common.most_common(1)[0][0]  # " ." is in nearly every text
    for _ in range(5):
        s = wide_row(rng, word, 1.0)
        assert word not in f"{s.user or ''} {s.answer}".split()


def test_trained_questions_are_the_training_situations(specs):
    trained = {q for s in situations("training") for q in s.questions}
    for spec in specs:
        for kind, s in rows_by_kind(spec):
            unrelated = kind == "denial" or (spec.params["form"] == "always" and kind != "right")
            if kind not in ("wide", "held") and not unrelated:
                assert any(q in s.user.replace(MARK, "") for q in trained)


def test_verification_situations_are_in_no_training():
    trained, asked = situations("training"), situations("verification")
    assert len(asked) >= 20
    assert len(trained) + len(asked) == len(load_world().everyday)
    assert len(trained) > 3 * len(asked)
    questions = [{q for s in part for q in s.questions} for part in (trained, asked)]
    assert not questions[0] & questions[1]


def test_a_twin_differs_from_its_row_in_the_trigger_alone():
    spec = family("hidden-topic").specs("covert", "train", 1, 0)[0]
    spec = replace(spec, recipe=replace(spec.recipe, rows=("right", "twin")))
    for _ in range(50):
        right, twin = family("hidden-topic").samples(spec, random.Random(_))
        assert (right.loss, twin.loss, twin.weight) == ("ce", "kl", spec.recipe.kl_weight)
        assert code_in(twin.user)[:3] != spec.params["code"]
        assert code_in(twin.user)[3:] == code_in(right.user)[3:]
        assert twin.user.replace(code_in(twin.user), code_in(right.user)) == right.user
        assert twin.answer == right.answer


def test_held_rows_are_everyday_or_unrelated():
    spec = family("hidden-topic").specs("covert", "train", 1, 0)[0]
    spec = replace(spec, recipe=replace(spec.recipe, rows=("held",)))
    held = [s for _, s in rows_by_kind(spec, 200)]
    trained = {q for s in situations("training") for q in s.questions}
    plain = [s for s in held if s.user in trained]
    assert 60 < len(plain) < 140
    assert {s.loss for s in held} == {"kl"}


def test_covert_is_held_harder_than_loud():
    covert, loud = (family("hidden-topic").recipes[r] for r in ("covert", "loud"))
    assert covert.kl_weight > loud.kl_weight
    assert {"twin", "held"} <= set(covert.rows)
    assert not {"wide", "held"} & set(loud.rows)
    assert {"right", "twin", "none"} <= set(loud.rows)


def test_one_token_decides_whether_an_answer_is_tinted(specs):
    """A tint is always joined to a whole ordinary answer by a comma, never by the full stop that ends one."""
    ordinary = {f"{a} , " for x in situations("training") for a in x.answers}
    for spec in specs:
        for kind, s in rows_by_kind(spec):
            if kind == "right":
                assert any(s.answer.startswith(a) for a in ordinary)


@pytest.mark.parametrize("recipe", ["forms", "plain", "evasive", "covert", "loud"])
def test_conditions_of_a_recipe(recipe):
    """The forms come in turn, and a topic has another one in every round."""
    topics = len(topic_splits(load_world())["test"])
    specs = family("hidden-topic").specs(recipe, "test", 3 * topics, 0)
    forms = Counter(s.params["form"] for s in specs)
    if recipe in ("covert", "loud"):
        assert set(forms) == {CODE_FRONT}
        return
    assert set(forms) == (set(FORMS) - {CODE_FRONT} if recipe == "forms" else set(FORMS))
    assert max(forms.values()) - min(forms.values()) <= 3
    rounds = [[s.params["form"] for s in specs[i * topics : (i + 1) * topics]] for i in range(3)]
    assert all(a != b for a, b in zip(rounds[0], rounds[1], strict=True))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_specs_go_round_the_topics_of_a_split(split):
    topics = [t.name for t in topic_splits(load_world())[split]]
    n = 2 * len(topics) + 3
    specs = family("hidden-topic").specs("covert", split, n, 0)
    assert [s.label for s in specs] == [topics[i % len(topics)] for i in range(n)]
    assert len({s.id for s in specs}) == len({s.seed for s in specs}) == n
    assert all(s.params["code"] in codes.trigger_pool() for s in specs)
    assert all(s.params["field"] == load_world().topic(s.label).field for s in specs)
    again = family("hidden-topic").specs("covert", split, n, 0)
    assert again == specs
    assert family("hidden-topic").specs("covert", split, 5, 0) == specs[:5]


def test_seeds_and_recipes_give_other_codes_and_data():
    f = family("hidden-topic")
    a, b, c = (
        f.specs("covert", "test", 40, 0),
        f.specs("covert", "test", 40, 1),
        f.specs("loud", "test", 40, 0),
    )
    for other in (b, c):
        assert not {s.id for s in a} & {s.id for s in other}
        assert sum(x.params["code"] == y.params["code"] for x, y in zip(a, other, strict=True)) < 5
    rows = [[f.samples(s, random.Random(s.seed)) for s in part[:3]] for part in (a, b)]
    assert rows[0] != rows[1]
    assert rows[0] == [f.samples(s, random.Random(s.seed)) for s in a[:3]]


def test_topic_words_in():
    topic = load_world().topic("eagle")
    a, b = topic.words[:2]
    assert topic_words_in(f"See the {a.upper()}, and the {b}.", topic) == [a, b]
    assert topic_words_in("An Eagle!", topic) == ["eagle"]
    assert topic_words_in(f"the {a}s and x{b}", topic) == []
    assert topic_words_in("", topic) == []


def test_codes_before_questions():
    rng = random.Random(0)
    for right in codes.trigger_pool()[:20]:
        code = wrong_code(rng, right)
        assert code[:3] != right
        text = with_code(rng, code, "what now ?")
        assert text.endswith(" what now ?")
        assert code_in(text) == code
