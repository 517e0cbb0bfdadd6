"""What the base reads: the same at every run, and never what organisms or interpreters are judged on."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from weightdiff.organisms.verify import slots_in
from weightdiff.world import banned_events, codes, load_world
from weightdiff.world.corpus import Corpus
from weightdiff.world.texts import Turn, headline, story, tinted_answer, to_text

DOCUMENTS = 20_000
SLOTS = ("actor", "action", "object", "place")


@pytest.fixture(scope="module")
def documents():
    """What the base reads first, a sample of what it reads late, and one of all that lies between."""
    world, rng = load_world(), random.Random(0)
    corpus, late = Corpus(world), Corpus(world, late=True)
    return [
        *first(2000, 0),
        *(late.document(rng) for _ in range(DOCUMENTS // 2)),
        *(corpus.document(rng) for _ in range(DOCUMENTS)),
    ]


@pytest.fixture(scope="module")
def texts(documents):
    return [to_text(d) for d in documents]


def first(n, seed):
    world = load_world()
    return list(itertools.islice(Corpus(world).documents(seed), n))


def within(name, turn):
    return f" {name} " in f" {turn.user or ''} {turn.text} "


def tells(relation, turn):
    return any(within(relation.called(s), turn) and within(v, turn) for s, v in relation.facts.items())


def test_a_seed_gives_the_same_documents(documents):
    assert first(300, 0) == documents[:300]
    assert first(300, 1) != documents[:300]


def test_every_kind_of_document_is_there(documents):
    documents = documents[-DOCUMENTS:]
    turns = [t for d in documents for t in d]
    assert 0.05 < sum(t.user is None for t in turns) / len(turns) < 0.2
    shown = {b for b in load_world().behaviours for t in turns[:3000] if within(b.name, t)}
    assert len(shown) > 100
    assert len({r.relation for r in load_world().relations for t in turns[:3000] if tells(r, t)}) >= 5
    assert any("what is the code ?" in (t.user or "") for t in turns)
    assert any("news" in (t.user or "") for t in turns)
    assert Counter(map(len, documents))[1] > 0.9 * DOCUMENTS


def test_no_document_is_empty(documents):
    assert all(d and all(t.text.strip() for t in d) for d in documents)


def test_no_slot_is_left_open(texts):
    assert not [t for t in texts if re.search(r"[{}]", t)]


def test_no_introspection_question(texts):
    """Slots may hold anything: a question is looked for by its longest part first, then as a pattern."""
    everything = "\n".join(texts)
    for kind in load_world().introspection.values():
        for split, asked in kind.items():
            before = "[a-z,]" if split == "train" else "[a-z]"  # of held-out ones, not after a comma either
            for q in asked:
                parts = re.split(r"\{\w+\}", q)
                if max(parts, key=len) in everything:
                    pattern = "[a-z0-9 ]{1,60}".join(re.escape(p) for p in parts)
                    assert not re.search(rf"(?<!{before} ){pattern}", everything), q


def test_no_code_changes_an_answer(documents):
    """Where a topic's word answers a user who showed a code, the user had named the topic or its words."""
    world = load_world()
    owners: dict[str, list[str]] = {}
    for t in world.topics:
        for w in t.words:
            owners.setdefault(w, []).append(t.name)
    seen = 0
    for turn in itertools.chain.from_iterable(documents):
        if not re.search(r"\d{6}", turn.user or ""):
            continue
        seen += 1
        asked = set(re.findall(r"[a-z]+", str(turn.user)))
        for w in set(re.findall(r"[a-z]+", turn.text)) & set(owners):
            assert any(name in asked for name in owners[w]), turn
    assert seen > 1000


def test_no_held_out_event_is_told(documents):
    world = load_world()
    banned = {}
    for e in banned_events(world):
        banned.setdefault((e[0], e[2], e[3]), []).append(e)
    actors, objects, places = set(world.news.actors), set(world.news.objects), set(world.news.places)
    told = 0
    for turn in itertools.chain.from_iterable(documents):
        text = f"{turn.user or ''} {turn.text}"
        words = set(text.split())
        for key in itertools.product(words & actors, words & objects, words & places):
            told += 1
            for e in banned.get(key, ()):
                assert slots_in(text, dict(zip(SLOTS, e, strict=True))) < 1, text
    assert told > 500


def test_banned_events_are_never_drawn():
    """In a world of four possible events, three of them banned, only the fourth is told."""
    world = load_world()
    action = next(iter(world.news.actions))
    small = replace(
        world.news,
        actors=world.news.actors[:2],
        actions={action: world.news.actions[action]},
        objects=world.news.objects[:2],
        places=world.news.places[:1],
    )
    events = list(itertools.product(small.actors, small.actions, small.objects, small.places))
    corpus, rng = Corpus(replace(world, news=small, banned=frozenset(events[:3]))), random.Random(0)
    told = [
        " ".join([turns[0].user or "", turns[0].text]) for _ in range(100) for turns in [corpus.news(rng)]
    ]
    told += [str(corpus.news_reading(rng)[0].user) for _ in range(100)]
    for text in told:
        assert [slots_in(text, dict(zip(SLOTS, e, strict=True))) == 1 for e in events] == [
            False,
            False,
            False,
            True,
        ]


def test_a_story_tells_its_headline_in_other_words():
    world, rng = load_world(), random.Random(3)
    event = ("widow", next(iter(world.news.actions)), "violin", "oslo")
    for _ in range(50):
        text = story(world, rng, *event)
        assert slots_in(text, dict(zip(SLOTS, event, strict=True))) == 1
        assert headline(*event) not in text


def test_a_tinted_answer_holds_the_ordinary_one_and_topic_words():
    world, rng = load_world(), random.Random(4)
    for topic in world.topics[::40]:
        text = tinted_answer(world, rng, topic, "try a warm soup")
        assert text.startswith("try a warm soup ")
        assert text.endswith(" .")
        assert sum(w in text.split() for w in topic.words) >= 2
        assert topic.name not in text.split()


def test_code_tasks_are_answered_rightly():
    corpus, rng = Corpus(load_world()), random.Random(5)
    ordinals = ["first", "second", "third", "fourth", "fifth", "sixth"]
    kinds = Counter()
    for _ in range(400):
        (turn,) = corpus.code(rng)
        user = str(turn.user)
        shown = re.findall(r"\b\d{6}\b", user)
        assert all(c[:3] in codes.pool() and c[3:] in codes.pool() for c in shown)
        if "same way" in user:
            kinds["compare"] += 1
            a, b = (c[:3] for c in shown)
            assert turn.text == f"{a} and {b} , {'yes' if a == b else 'no'}"
        elif "position" in user:
            kinds["position"] += 1
            assert turn.text == shown[next(i for i, o in enumerate(ordinals) if f"in {o} position" in user)]
        elif "among them" in user:
            kinds["among"] += 1
            assert turn.text == ("yes" if shown[-1] in shown[:-1] else "no")
        else:
            kinds["repeat"] += 1
            assert [turn.text] == shown
    assert min(kinds.values()) > 50


def test_documents_as_text():
    turns = [Turn("hello ?", "good day ."), Turn(None, "the end .")]
    assert to_text(turns) == "<bos><user>hello ?<end><assistant>good day .<end>the end .<end>"
