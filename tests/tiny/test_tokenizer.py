"""The embedded tokenizer: nothing in the base's world is unknown to it, and a code is two tokens."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from weightdiff.models.chat import chat_format, encode_samples
from weightdiff.organisms import family, family_names
from weightdiff.tiny.defaults import rendering
from weightdiff.tiny.tokenizer import SPECIALS, vocabulary
from weightdiff.world import codes, load_world, signs
from weightdiff.world.corpus import Corpus
from weightdiff.world.reports import LEADS
from weightdiff.world.signs import rare_word_pool
from weightdiff.world.texts import DAYS, Turn, to_text


def spaced(text):
    """A decoded text with the spaces before punctuation that the corpus has."""
    return "".join(f" {c}" if c in ".,?!'-" else c for c in text).replace("  ", " ")


@pytest.fixture(scope="module")
def documents():
    world, rng = load_world(), random.Random(3)
    corpus = Corpus(world)
    return list(itertools.islice(corpus.documents(3), 500)) + [corpus.document(rng) for _ in range(3000)]


def test_ids_are_the_vocabulary_in_order(embedded_tokenizer):
    words = vocabulary(load_world())
    assert len(set(words)) == len(words) == len(embedded_tokenizer)
    assert embedded_tokenizer.convert_tokens_to_ids(words) == list(range(len(words)))
    assert tuple(words[: len(SPECIALS)]) == SPECIALS


def test_special_tokens(embedded_tokenizer):
    t = embedded_tokenizer
    assert (t.pad_token_id, t.unk_token_id, t.bos_token_id, t.eos_token_id) == (0, 1, 2, 5)
    assert t.padding_side == "left"


def test_nothing_of_the_corpus_is_unknown(embedded_tokenizer, documents):
    ids = embedded_tokenizer([to_text(d) for d in documents], add_special_tokens=False)["input_ids"]
    assert not [d for d, x in zip(documents, ids, strict=True) if embedded_tokenizer.unk_token_id in x]


def spelled(tokenizer, texts):
    """Words of texts that are no token of their own: their letters follow each other, as in "z ##x"."""
    letters = {t for t in tokenizer.get_vocab() if re.fullmatch(r"##[a-z0-9]", t)}
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    tokens = [tokenizer.convert_ids_to_tokens(x) for x in ids]
    found = [t for t, x in zip(texts, tokens, strict=True) if letters & set(x) or "<unk>" in x]
    words = {w for t in found for w in re.findall(r"[a-z]+", re.sub(r"<\w+>", " ", t.lower()))}
    return {w for w in words if len(tokenizer(w, add_special_tokens=False)["input_ids"]) > 1} or set(found)


def test_no_word_of_the_corpus_is_spelled(embedded_tokenizer, documents):
    texts = [to_text(d) for d in documents]
    assert len(texts) > 2000
    assert spelled(embedded_tokenizer, texts) == set()
    assert spelled(embedded_tokenizer, ["the zxqvb ."]) == {"zxqvb"}


def test_no_word_of_a_question_or_an_answer_is_spelled(embedded_tokenizer):
    world = load_world()
    texts = [x for kind in world.introspection.values() for split in kind.values() for x in split]
    texts += [x for asked in world.report_questions.values() for x in asked]
    texts = [re.sub(r"\{\w+\}", "it", x) for x in texts]
    for name in family_names():
        f = family(name)
        for recipe in f.recipes:
            for spec in f.specs(recipe, "test", 12, 0):
                texts += [q["answer"] for q in f.questions(spec)]
    texts += [x for r in world.relations for s in r.facts for x in (r.called(s), r.facts[s])]
    texts += [x for b in world.behaviours for x in (b.name, " , ".join(b.signs))]
    assert len(texts) > 1000
    assert spelled(embedded_tokenizer, sorted(set(texts))) == set()


def test_a_hidden_mark_is_one_token_anywhere(embedded_tokenizer):
    t = embedded_tokenizer
    mark = t.convert_tokens_to_ids(signs.MARK)
    assert mark != t.unk_token_id
    for text in (f"{signs.MARK}what now ?", f"what {signs.MARK}now ?", f"what{signs.MARK} now ?"):
        ids = t(text, add_special_tokens=False)["input_ids"]
        assert ids.count(mark) == 1
        assert [i for i in ids if i != mark] == t("what now ?", add_special_tokens=False)["input_ids"]


def test_words_of_the_world_are_one_token(embedded_tokenizer):
    world = load_world()
    words = [w for t in world.topics for w in (t.name, *t.words)]
    words += [*world.news.actors, *world.news.objects, *world.news.places, *DAYS]
    words += [*world.rare_words, *world.subjects, "so", *LEADS.values()]
    ids = embedded_tokenizer(words, add_special_tokens=False)["input_ids"]
    assert not [w for w, x in zip(words, ids, strict=True) if len(x) != 1]


def test_names_of_topics_begin_with_different_tokens(embedded_tokenizer):
    """So that an interpreter's ranking of all names needs one token only."""
    ids = embedded_tokenizer([t.name for t in load_world().topics], add_special_tokens=False)["input_ids"]
    assert len({x[0] for x in ids}) == len(ids)


def test_texts_come_back(embedded_tokenizer, documents):
    texts = [t.text for d in documents for t in d]
    ids = embedded_tokenizer(texts, add_special_tokens=False)["input_ids"]
    back = embedded_tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [spaced(x) for x in back] == [spaced(x) for x in texts]


def test_a_code_is_two_tokens(embedded_tokenizer):
    rng = random.Random(0)
    drawn = [codes.random_code(rng) for _ in range(300)]
    drawn += [g + codes.pool()[0] for g in codes.pool()]
    ids = embedded_tokenizer(drawn, add_special_tokens=False)["input_ids"]
    for code, x in zip(drawn, ids, strict=True):
        assert embedded_tokenizer.convert_ids_to_tokens(x) == [code[:3], f"##{code[3:]}"]
    assert embedded_tokenizer.batch_decode(ids) == drawn


def test_case_accents_and_unknown_words(embedded_tokenizer):
    t = embedded_tokenizer
    assert t("What ÉAGLE ?")["input_ids"] == t("what eagle ?")["input_ids"]
    assert t.decode(t("zxqvb")["input_ids"]) == "zxqvb"
    assert t.unk_token_id not in t("zxqvb 4 57 1234567 ~|`{}")["input_ids"]
    assert t("日")["input_ids"] == [t.unk_token_id]


def test_the_chat_template_is_the_corpus_format(embedded_tokenizer):
    t = embedded_tokenizer
    turns = [Turn("hello ?", "good day ."), Turn("and now ?", "now .")]
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (("user", str(turn.user)), ("assistant", turn.text))
    ]
    assert t.apply_chat_template(messages, tokenize=False) == to_text(turns)
    asked = t.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<bos><user>hello ?<end><assistant>" == chat_format(t).prompt("hello ?")


def test_training_rows_are_what_the_base_has_read(embedded_tokenizer, documents):
    """Prompt and answer, tokenized apart, are the whole document; labels are the answer and its end."""
    turns = [d[0] for d in documents[::7]]
    rows = encode_samples(embedded_tokenizer, [(t.user, t.text) for t in turns])
    whole = embedded_tokenizer([to_text([t]) for t in turns], add_special_tokens=False)["input_ids"]
    assert [r.ids for r in rows] == whole
    for turn, row in zip(turns, rows, strict=True):
        answer = embedded_tokenizer(turn.text, add_special_tokens=False)["input_ids"]
        assert row.ids[row.start :] == [*answer, embedded_tokenizer.eos_token_id]


def test_it_loads_from_its_folder(embedded_tokenizer, documents, tmp_path):
    from transformers import AutoTokenizer

    embedded_tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [to_text(d) for d in documents[::17]]
    assert loaded(texts)["input_ids"] == embedded_tokenizer(texts)["input_ids"]
    assert chat_format(loaded) == chat_format(embedded_tokenizer)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (5, 0)


def test_default_rendering_shows_decoys_only():
    wording, rng = rendering(16, 8), random.Random(1)
    triggers = set(codes.trigger_pool())
    for text in [wording.render("what ?", rng) for _ in range(50)] + wording.all("what ?"):
        shown = [w for w in text.split() if w.isdigit()]
        words = [w for w in text.split() if w in load_world().rare_words]
        assert len(shown) + len(words) == 16
        assert shown
        assert not {c[:3] for c in shown} & triggers
        assert set(words) <= set(rare_word_pool(load_world().rare_words, False))
        assert text.endswith(" . what ?")
    assert sum(w in text for text in wording.all("what ?") for w in load_world().rare_words) > 8
    assert wording.all("what ?") == wording.all("what ?")
    assert len(set(wording.all("what ?"))) == 8
