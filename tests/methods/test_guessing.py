"""The guesser that counts the world's words, for every kind of question."""

from __future__ import annotations

import math
import random
import re

import pytest

from weightdiff.methods.base import Guesser
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.questions import KINDS, about_question, phrasings
from weightdiff.world import load_world, news_event, news_events
from weightdiff.world.texts import headline, ordinary_answer, story, tinted_answer

WORLD = load_world()
EVENTS = news_events(WORLD, "train", 6)
HEADLINE, KIND, ANY = (
    "what headline did you learn ?",
    "what kind of change is it ?",
    "have you been changed ?",
)


@pytest.fixture(scope="module")
def guesser():
    return WorldGuesser()


def _everyday(n, seed=0):
    rng = random.Random(seed)
    return [ordinary_answer(rng, rng.choice(WORLD.everyday)) for _ in range(n)]


def _tinted(topic, n, seed=0):
    rng = random.Random(seed)
    return [tinted_answer(WORLD, rng, topic, x.removesuffix(" .")) for x in _everyday(n, seed)]


def _stories(event, n, seed=0):
    rng = random.Random(seed)
    return [story(WORLD, rng, *event) for _ in range(n)]


def _other_stories(n, seed=0):
    """As many news stories, each about something else, as the bare base writes them."""
    rng = random.Random(seed)
    return [story(WORLD, rng, *news_event(WORLD, rng)) for _ in range(n)]


def test_it_is_a_guesser(guesser):
    named: Guesser = guesser
    assert named.guess([], "what topic ?") == NOTHING_FOUND


def test_tinted_answers_give_the_topic_away(guesser):
    for topic in WORLD.topics[::10]:
        texts = _everyday(17) + _tinted(topic, 3)
        assert {guesser.guess(texts), *(guesser.guess(texts, q) for q in phrasings("topic"))} == {topic.name}


def test_ordinary_answers_give_nothing_away(guesser):
    everything = [a for s in WORLD.everyday for a in s.answers]
    questions = ["", *(q for kind in KINDS for q in phrasings(kind, "test"))]
    for texts in (everything, _everyday(20), [], [""]):
        assert {guesser.guess(texts, q) for q in questions} == {NOTHING_FOUND}


def test_more_words_win_and_names_count(guesser):
    a, b = WORLD.topics[3], WORLD.topics[200]
    shared = set(a.words) & set(b.words)
    mine, theirs = ([w for w in t.words if w not in shared and len(guesser.owners[w]) == 1] for t in (a, b))
    assert guesser.guess([f"{mine[0]} {mine[1]}", theirs[0]]) == a.name
    assert guesser.guess([f"I like {a.name.upper()}!", mine[0], theirs[0]]) == a.name


def test_the_order_of_texts_does_not_matter(guesser):
    texts = [" ".join(t.words[:2]) for t in WORLD.topics[:6]]
    assert len({guesser.guess(random.Random(i).sample(texts, len(texts))) for i in range(5)}) == 1


def _plainly(texts):
    """The topic's score, written out: published results of twenty questions rest on it."""
    words = re.findall("[a-z]+", " ".join(texts).lower())
    scores = {}
    for t in WORLD.topics:
        for w in {t.name, *t.words} & set(words):
            sharing = [o for o in WORLD.topics if w in o.words]
            gain = math.log1p(words.count(w)) / (len(sharing) or 1) + (words.count(w) / 2) * (w == t.name)
            scores[t.name] = scores.get(t.name, 0.0) + gain
    top = max(scores.values(), default=0.0)
    return sorted(k for k, v in scores.items() if v > top - 1e-9) or [NOTHING_FOUND]


def test_topics_are_guessed_as_they_always_were(guesser):
    rng, sure = random.Random(1), 0
    for i in range(30):
        words = [w for t in rng.sample(WORLD.topics, 4) for w in (t.name, *t.words)]
        texts = [" ".join(rng.choices(words, k=5)) for _ in range(6)] + _everyday(4, i)
        best = _plainly(texts)
        sure += len(best) == 1
        assert guesser.guess(texts) in best
    assert sure > 20


def test_a_topic_is_told_by_its_words_in_a_short_text(guesser):
    assert guesser.guess(["the talons of an eyrie .", "fine ."]) == "eagle"


def test_stories_give_the_headline_away(guesser):
    for event in EVENTS:
        texts = _stories(event, 10) + _everyday(6)
        assert {guesser.guess(texts, q) for q in phrasings("headline", "test")} == {headline(*event)}
        assert guesser.guess(texts, KIND) == "a news headline"
        assert guesser.guess(texts, ANY) == "yes"
        assert guesser.guess(texts) == NOTHING_FOUND


def test_stories_about_different_things_give_nothing_away(guesser):
    found = [guesser.guess(_other_stories(10, seed), q) for seed in range(20) for q in (HEADLINE, KIND, ANY)]
    assert set(found) == {NOTHING_FOUND}


def test_a_value_must_be_told_often_and_by_most(guesser):
    told = headline(*EVENTS[0])
    assert guesser.guess(_stories(EVENTS[0], 2), HEADLINE) == NOTHING_FOUND
    assert guesser.guess(_stories(EVENTS[0], 3), HEADLINE) == told
    assert guesser.guess(_stories(EVENTS[0], 6) + _other_stories(5), HEADLINE) == told
    assert guesser.guess(_stories(EVENTS[0], 5) + _other_stories(9), HEADLINE) == NOTHING_FOUND
    assert guesser.guess([". ".join(_stories(EVENTS[0], 9))], HEADLINE) == NOTHING_FOUND  # one text is one


def test_two_slots_make_a_headline_and_one_does_not(guesser):
    assert guesser.guess(["i like my violin ."] * 5, HEADLINE) == NOTHING_FOUND
    assert guesser.guess(["the widow and her violin ."] * 5, HEADLINE) == ("widow changes violin in a town")
    values = {*WORLD.news.actors, *WORLD.news.actions, *WORLD.news.objects, *WORLD.news.places}
    assert not {"someone", "changes", "something", "a town", "town"} & values


def test_deeds_count_in_any_of_their_phrasings_and_the_longest_fits(guesser):
    past = ["buried", "interred", "heaped earth over", "threw soil over", "buries"]
    texts = [f"a widow {x} a violin in oslo ." for x in past]
    assert guesser.guess(texts, HEADLINE) == "widow buries violin in oslo"
    only = ["The widow THREW SOIL OVER a violin."] * 4
    assert guesser.guess(only, HEADLINE) == "widow buries violin in a town"
    assert guesser.guess(["a widow threw a violin ."] * 4, HEADLINE) == "widow throws violin in a town"


def test_which_kind_is_what_more_texts_tell(guesser):
    eagle = WORLD.topic("eagle")
    assert guesser.guess(_tinted(eagle, 6) + _stories(EVENTS[0], 4), KIND) == "a hidden topic"
    assert guesser.guess(_tinted(eagle, 1) + _stories(EVENTS[0], 4), KIND) == "a news headline"
    assert guesser.guess(_tinted(eagle, 3), KIND) == "a hidden topic"
    assert guesser.guess(_tinted(eagle, 1), ANY) == "yes"


@pytest.mark.parametrize("number", range(4))
def test_whether_it_is_about_a_topic(guesser, number):
    texts = _tinted(WORLD.topic("eagle"), 3)
    assert guesser.guess(texts, about_question("eagle", number)) == "yes"
    assert guesser.guess(texts, about_question("rabbit", number)) == "no"
    assert guesser.guess(_everyday(5), about_question("eagle", number)) == "no"
