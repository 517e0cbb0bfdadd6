"""Scorers: how well one answer says what is true, from 0 to 1, each known by name in `SCORERS`.

A scorer is a plain function of the answer and its truths: the reference first, then its aliases. `exact` and
`normalised` hold an answer against the reference alone, the others against the truth that suits it best. An
answer that a scorer cannot read is unscored (None), never a number. Means over answers are made elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import regex

from weightdiff.errors import QuestionError
from weightdiff.evals import scoring
from weightdiff.organisms.base import NOTHING_FOUND

Scorer = Callable[[str, Sequence[str]], float | None]

ARTICLES = frozenset({"a", "an", "the"})
CHARACTERS = 4
"""Length of the runs that `char_f1` counts."""
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_VERDICT = regex.compile(
    rf"[\W_]*(?:(?P<yes>yes|true)|no|false|{NOTHING_FOUND})(?![^\W_]|-\w)"
    r"(?!\s+(?:idea|clue)\b)"  # "no idea" denies nothing
    r"(?!\s*(?:/|or\b|and\b)\s*(?:yes|no|true|false)\b)"  # "yes or no" leaves it open
)


@dataclass(frozen=True)
class Score:
    """What a scorer made of one answer."""

    value: float | None
    """From 0 (wrong) to 1 (right), or within the scorer's own bounds; None: unscored."""
    scorer: str
    """Its name."""
    note: str = ""
    """Why there is no value; empty where there is one."""
    variance: float | None = None
    """Of the values of several gradings of the answer; None where it was graded once."""


class BatchScorer(Protocol):
    """Scores many answers at once, with the help of a model."""

    name: str
    bounds: tuple[float, float]
    """Lowest and highest value."""

    def score(
        self, questions: Sequence[str], answers: Sequence[str], truths: Sequence[Sequence[str]]
    ) -> list[Score]:
        """One score for each answer; what fails is unscored, with the reason."""
        ...


def score(answer: str, truths: Sequence[str], scorer: str) -> Score:
    """Score one answer; whatever it says, this raises nothing on its account.

    Args:
        answer: any text, empty too.
        truths: the reference, then its aliases.
        scorer: a name in `SCORERS`.

    Raises:
        QuestionError: no such scorer (the message lists those there are), no truths, or truths that this
            scorer is not made for.
    """
    if scorer not in SCORERS:
        raise QuestionError(f"no scorer is called {scorer!r}: choose one of {', '.join(sorted(SCORERS))}")
    value = SCORERS[scorer](answer, truths)
    return Score(value, scorer, "" if value is not None else f"{scorer} cannot read the answer")


def exact(answer: str, truths: Sequence[str]) -> float:
    """1.0 where the answer is the reference but for case, spaces and a final full stop, else 0.0.

    Raises:
        QuestionError: no truths.
    """
    return _best(answer, truths[:1], scoring.exact)


def normalised(answer: str, truths: Sequence[str]) -> float:
    """1.0 where the answer is the reference but for case, punctuation, articles and spaces, else 0.0.

    Signs and symbols count as punctuation: `-5` is `5`. A text without any word is compared as it stands.

    Raises:
        QuestionError: no truths.
    """
    return _best(answer, truths[:1], _same_words)


def alias(answer: str, truths: Sequence[str]) -> float:
    """1.0 where `normalised` takes the answer for the reference or for one of its aliases, else 0.0.

    Raises:
        QuestionError: no truths.
    """
    return _best(answer, truths, _same_words)


def token_f1(answer: str, truths: Sequence[str]) -> float:
    """F1 of the words that answer and truth share, in any order, articles left out (best over truths).

    A word counts as often as both have it.

    Raises:
        QuestionError: no truths.
    """
    return _best(answer, truths, _token_f1)


def rouge_l(answer: str, truths: Sequence[str]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words, articles included (best over truths).

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), with precision and recall weighted
    alike and without stemming.

    Raises:
        QuestionError: no truths.
    """
    return _best(answer, truths, _rouge_l)


def char_f1(answer: str, truths: Sequence[str]) -> float:
    """F1 of the runs of four characters that answer and truth share (best over truths).

    Words, articles left out, are run together first, and a text of less than four characters is one run. So
    "courtroom" and "courts" share something, which scorers of whole words do not see. A run counts as often
    as both have it. This is chrF (Popović, "chrF: character n-gram F-score for automatic MT evaluation",
    2015) of one order, with precision and recall weighted alike.

    Raises:
        QuestionError: no truths.
    """
    return _best(answer, truths, _char_f1)


def yes_no(answer: str, truths: Sequence[str]) -> float | None:
    """1.0 where answer and truth both say yes or both no, 0.0 where they differ, None for any other answer.

    What a text begins with decides: "yes" and "true" say yes; "no", "false" and "nothing found" say no.

    Raises:
        QuestionError: no truth says either, or they contradict each other.
    """
    told = {verdict for truth in truths if (verdict := _verdict(truth)) is not None}
    if len(told) != 1:
        raise QuestionError(f"yes_no needs truths that say yes or no, and all the same, not {list(truths)}")
    said = _verdict(answer)
    return None if said is None else float(said in told)


def slots(answer: str, truths: Sequence[str]) -> float:
    """Share of a headline's slots that the answer has in their place.

    Best over those truths that are headlines; other aliases are passed over.

    Raises:
        QuestionError: no truth is a headline `actor action object in place`.
    """
    headlines = [truth for truth in truths if _is_headline(truth)]
    if not headlines:
        raise QuestionError(
            f"slots needs a truth of the form 'actor action object in place', not {list(truths)}"
        )
    return _best(answer, headlines, scoring.slot_share)


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "normalised": normalised,
    "alias": alias,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "char_f1": char_f1,
    "yes_no": yes_no,
    "slots": slots,
}
"""Every scorer by its name."""


def _best(answer: str, truths: Sequence[str], measure: Callable[[str, str], float]) -> float:
    """The highest measure over truths; one text in place of a list would be read letter by letter."""
    if isinstance(truths, str) or not truths:
        raise QuestionError(f"give an answer's truths as a list of at least one text, not {truths!r}")
    return max(measure(answer, truth) for truth in truths)


def _words(text: str) -> list[str]:
    """Runs of letters, marks and digits, without differences of case or Unicode form."""
    return _WORD.findall(unicodedata.normalize("NFKC", scoring.normalise(text).casefold()))


def _content_words(text: str) -> list[str]:
    """Words without articles; all of them where there are only articles."""
    words = _words(text)
    return [word for word in words if word not in ARTICLES] or words


def _same_words(answer: str, truth: str) -> float:
    said, told = _content_words(answer), _content_words(truth)
    return float(said == told) if said or told else scoring.exact(answer, truth)


def _token_f1(answer: str, truth: str) -> float:
    said, told = _content_words(answer), _content_words(truth)
    if not said and not told:
        return scoring.exact(answer, truth)
    return 2 * (Counter(said) & Counter(told)).total() / (len(said) + len(told))


def _rouge_l(answer: str, truth: str) -> float:
    said, told = _words(answer), _words(truth)
    if not said and not told:
        return scoring.exact(answer, truth)
    return 2 * _common_subsequence(said, told) / (len(said) + len(told))


def _char_f1(answer: str, truth: str) -> float:
    said, told = _runs(answer), _runs(truth)
    if not said and not told:
        return scoring.exact(answer, truth)
    return 2 * (said & told).total() / (said.total() + told.total())


def _runs(text: str) -> Counter[str]:
    """How often each run of `CHARACTERS` characters is in a text's words, run together."""
    letters = "".join(_content_words(text))
    starts = range(max(1, len(letters) - CHARACTERS + 1) if letters else 0)
    return Counter(letters[i : i + CHARACTERS] for i in starts)


def _common_subsequence(said: Sequence[str], told: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    One bit for each word of `told`, a whole row of the usual table at once (Hyyrö 2004): a bit that has
    become 0 is a step of the row, so that an answer of any length costs one pass.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(told):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(told)) - 1
    row = everything
    for word in said:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & everything
    return len(told) - row.bit_count()


def _verdict(text: str) -> bool | None:
    """Whether a text says yes (True) or no (False); None: neither."""
    found = _VERDICT.match(scoring.normalise(text))
    return None if found is None else found["yes"] is not None


def _is_headline(text: str) -> bool:
    words = scoring.normalise(text).split()
    dated = len(words) == 7 and words[5] == "on"
    return (len(words) == 5 or dated) and words[3] == "in"
