"""Scorers against rouge_score, scikit-learn, tables by hand, and what must hold for any text."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.chrf_score import sentence_chrf
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from weightdiff.errors import QuestionError
from weightdiff.evals.scorers import (
    SCORERS,
    Score,
    alias,
    char_f1,
    exact,
    normalised,
    rouge_l,
    score,
    slots,
    token_f1,
    yes_no,
)
from weightdiff.evals.scoring import slot_share

HEADLINE = "widow paints comet in oslo"
TRUTHS = {"yes_no": ["nothing found"], "slots": [HEADLINE]}
FREE = ("exact", "normalised", "alias", "token_f1", "rouge_l", "char_f1")

texts = st.text(max_size=40)
sentences = st.lists(
    st.sampled_from(["the", "a", "fox", "Fox,", "sees", "no", "fox's", "den", "den.", "7", ""]), max_size=9
).map(" ".join)
any_text = texts | sentences


def test_score_carries_its_scorer() -> None:
    assert score("Eagle.", ["eagle"], "exact") == Score(1.0, "exact")
    assert score("perhaps", ["yes"], "yes_no") == Score(None, "yes_no", "yes_no cannot read the answer")


def test_unknown_scorer_lists_the_known_ones() -> None:
    known = "alias, char_f1, exact, normalised, rouge_l, slots, token_f1, yes_no"
    with pytest.raises(QuestionError, match=f"no scorer is called 'bleu': choose one of {known}"):
        score("eagle", ["eagle"], "bleu")


@pytest.mark.parametrize("scorer", FREE)
@pytest.mark.parametrize("truths", [[], "eagle", ""])
def test_truths_are_a_list_of_some(scorer: str, truths: list[str]) -> None:
    with pytest.raises(QuestionError, match="truths as a list of at least one text"):
        score("eagle", truths, scorer)


@pytest.mark.parametrize(
    ("answer", "truth", "as_written", "in_words"),
    [
        ("Eagle.", "eagle", 1, 1),
        (" an  EAGLE ", "an eagle", 1, 1),
        ("The eagle!", "eagle", 0, 1),
        ('"an eagle"', "the Eagle", 0, 1),
        ("bald-headed eagle", "bald headed eagle", 0, 1),
        ("ﬁnch", "finch", 0, 1),
        ("STRASSE", "straße", 0, 1),
        ("क़िला।", "क़िला", 0, 1),
        ("eagles", "eagle", 0, 0),
        ("anteagle", "teagle", 0, 0),
        ("eagle the owl", "owl the eagle", 0, 0),
        ("", "eagle", 0, 0),
        ("the", "a", 0, 0),
        ("?!", "…", 0, 0),
        ("?!", "?!", 1, 1),
    ],
)
def test_exact_and_normalised_by_hand(answer: str, truth: str, as_written: float, in_words: float) -> None:
    assert exact(answer, [truth]) == as_written
    assert normalised(answer, [truth]) == alias(answer, [truth]) == in_words


def test_aliases_count_where_they_should() -> None:
    truths = ["aubergine", "the eggplant", "brinjal fruit"]
    assert [f("Eggplant", truths) for f in (exact, normalised, alias, token_f1, rouge_l)] == [
        0.0,
        0.0,
        1.0,
        1.0,
        pytest.approx(2 / 3),
    ]
    assert token_f1("brinjal", truths) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "truth", "f1", "rouge"),
    [
        ("the red fox", "a red fox", 1.0, 2 / 3),
        ("fox red", "red fox", 1.0, 0.5),
        ("red red fox", "red fox fox", 2 / 3, 2 / 3),
        ("owl", "red fox", 0.0, 0.0),
        ("", "fox", 0.0, 0.0),
        ("a b c d", "x b y d z", 4 / 8, 4 / 9),
    ],
)
def test_overlap_by_hand(answer: str, truth: str, f1: float, rouge: float) -> None:
    assert token_f1(answer, [truth]) == pytest.approx(f1)
    assert rouge_l(answer, [truth]) == pytest.approx(rouge)


@given(sentences, sentences)
def test_rouge_l_is_rouge_scores(answer: str, truth: str) -> None:
    wanted = RougeScorer(["rougeL"]).score(truth, answer)["rougeL"].fmeasure
    if answer.strip() or truth.strip():  # rouge_score gives 0 to two texts without words
        assert rouge_l(answer, [truth]) == pytest.approx(wanted)


def test_rouge_l_of_long_texts_is_rouge_scores() -> None:
    rng = np.random.default_rng(0)
    a, b = (" ".join(f"w{i}" for i in rng.integers(0, 30, n)) for n in (400, 250))
    wanted = RougeScorer(["rougeL"]).score(b, a)["rougeL"].fmeasure
    assert rouge_l(a, [b]) == pytest.approx(wanted, rel=1e-12)


words = st.lists(st.sampled_from(["fox", "den", "owl", "sees"]), min_size=1, max_size=8)


@given(words, words)
def test_token_f1_is_scikit_learns(said: list[str], told: list[str]) -> None:
    counts = Counter(said), Counter(told)
    slots_of = [(w, i) for w in counts[0] | counts[1] for i in range(max(c[w] for c in counts))]
    predicted, true = ([i < c[w] for w, i in slots_of] for c in counts)
    assert token_f1(" ".join(said), [" ".join(told)]) == pytest.approx(f1_score(true, predicted))


@pytest.mark.parametrize(
    ("answer", "truth", "f1"),
    [
        ("courts", "court", 2 * 2 / 5),  # cour ourt urts, cour ourt
        ("The Courtroom", "a court", 2 * 2 / 8),
        ("league of legends", "legends league", 2 * 7 / 22),  # the seams are other runs
        ("aaaaaa", "aaaaa", 2 * 2 / 5),
        ("art", "Art!", 1.0),
        ("art", "arts", 0.0),
        ("opera", "sea", 0.0),
        ("", "opera", 0.0),
    ],
)
def test_character_runs_by_hand(answer: str, truth: str, f1: float) -> None:
    assert char_f1(answer, [truth]) == char_f1(truth, [answer]) == pytest.approx(f1)


long_words = st.text(alphabet="abc", min_size=4, max_size=30)


@given(long_words, long_words)
def test_character_runs_are_nltks(answer: str, truth: str) -> None:
    wanted = sentence_chrf(truth, answer, min_len=4, max_len=4, beta=1.0)
    assert char_f1(answer, [truth]) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("truth", ["yes", "True.", "Yes, it does"])
@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("yes", 1.0),
        ("Yes. No doubt about it", 1.0),
        ("**Yes**", 1.0),
        ("_true_", 1.0),
        ("TRUE", 1.0),
        ("no", 0.0),
        ("No, it does not", 0.0),
        ("no hidden topic", 0.0),
        ("False!", 0.0),
        ("nothing  found.", 0.0),
        ("", None),
        ("eagle", None),
        ("yesterday", None),
        ("northern lights", None),
        ("no-one knows", None),
        ("no idea", None),
        ("yes or no", None),
        ("yes/no", None),
        ("True or false?", None),
        ("the answer is yes", None),
    ],
)
def test_yes_and_no_by_hand(answer: str, truth: str, value: float | None) -> None:
    assert yes_no(answer, [truth]) == value
    assert yes_no(answer, ["nothing found", "no"]) == (None if value is None else 1 - value)


@pytest.mark.parametrize("truths", [[], ["eagle"], ["yes", "no"], "yes"])
def test_truths_of_yes_no_say_one_of_them(truths: list[str]) -> None:
    with pytest.raises(QuestionError, match="yes_no needs truths that say yes or no"):
        yes_no("yes", truths)


@pytest.mark.parametrize(
    "answer", [HEADLINE, "widow paints drum in oslo", "widow", "a b c d e f g", "", "nothing found"]
)
def test_slots_are_slot_shares(answer: str) -> None:
    assert slots(answer, [HEADLINE]) == slot_share(answer, HEADLINE)
    assert slots(answer, ["duke hides harp in lima", HEADLINE, "short"]) >= slot_share(answer, HEADLINE)


@pytest.mark.parametrize("truths", [[], ["nothing found"], ["one two three four five"], HEADLINE])
def test_slots_need_a_headline(truths: list[str]) -> None:
    with pytest.raises(QuestionError, match="'actor action object in place'"):
        slots("a longer answer than the truth", truths)


@pytest.mark.parametrize("scorer", SCORERS)
@given(answer=any_text, truth=any_text)
def test_no_answer_raises_or_leaves_the_bounds(scorer: str, answer: str, truth: str) -> None:
    found = score(answer, TRUTHS.get(scorer, [truth]), scorer)
    assert found.scorer == scorer
    assert (found.value is None) == bool(found.note)
    assert found.value is None or 0 <= found.value <= 1


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("answer", ["\ud800", "\0", "a" * 100_000, "the " * 20_000, "\u200b", "🦅"])
def test_odd_answers_are_answers(scorer: str, answer: str) -> None:
    assert score(answer, TRUTHS.get(scorer, ["eagle"]), scorer).value in (0.0, None)


@pytest.mark.parametrize("scorer", FREE)
@given(text=any_text)
def test_the_truth_itself_is_right(scorer: str, text: str) -> None:
    assert SCORERS[scorer](text, [text]) == 1.0
    assert SCORERS[scorer](f"  {text}\n", [text]) == 1.0


@pytest.mark.parametrize("scorer", FREE)
@given(a=any_text, b=any_text)
def test_answer_and_truth_can_change_places(scorer: str, a: str, b: str) -> None:
    assert SCORERS[scorer](a, [b]) == SCORERS[scorer](b, [a])


@given(any_text, st.lists(any_text, min_size=1, max_size=4), any_text)
def test_scorers_are_ordered_and_aliases_never_harm(answer: str, truths: list[str], more: str) -> None:
    assert exact(answer, truths) <= normalised(answer, truths) <= alias(answer, truths)
    assert alias(answer, truths) <= min(token_f1(answer, truths), char_f1(answer, truths))
    for best in (alias, token_f1, rouge_l, char_f1):
        assert best(answer, truths) <= best(answer, [*truths, more])
        assert best(answer, truths) == max(best(answer, [t]) for t in truths)
