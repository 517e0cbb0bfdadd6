"""From what methods told to scored outcomes: every item's own scorers, then those that need a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from weightdiff.evals.dataset import MODEL_SCORERS, RANK_SCORERS, Dataset, Item
from weightdiff.evals.outcomes import Outcome
from weightdiff.evals.runner import Told
from weightdiff.evals.scorers import BatchScorer, Score, score

MODEL_KINDS = ("topic", "headline", "summary")
"""Kinds of question whose answers go to scorers that need a model."""


def grade(
    dataset: Dataset, told: Mapping[str, Sequence[Told]], scorers: Sequence[BatchScorer] = ()
) -> list[Outcome]:
    """Score everything that was told; by method, then in the order of the dataset's items.

    Args:
        dataset: what was asked.
        told: for each method, one entry an item (see `runner.ask`).
        scorers: graders that need a model, for items of `MODEL_KINDS`.
    """
    outcomes = [
        Outcome(method, item, t.answer, _scores(item, t), t.rank, t.truth_logprob)
        for method, answers in told.items()
        for item, t in zip(dataset.items, answers, strict=True)
    ]
    for scorer in scorers:
        at = [k for k, o in enumerate(outcomes) if o.item.kind in MODEL_KINDS and not _refused(o)]
        found = scorer.score(
            [outcomes[k].item.question for k in at],
            [outcomes[k].answer.text for k in at],
            [outcomes[k].item.truths for k in at],
        )
        for k, s in zip(at, found, strict=True):
            outcomes[k] = replace(outcomes[k], scores=(*outcomes[k].scores, s))
    return outcomes


def _scores(item: Item, told: Told) -> tuple[Score, ...]:
    """The scores of an item's own scorers; where the truth was not ranked, none of its rank."""
    out = []
    for name in item.scorers:
        if name in RANK_SCORERS:
            if told.rank is not None:
                out.append(Score(float(told.rank <= RANK_SCORERS[name]), name))
        elif name in MODEL_SCORERS:
            continue
        elif told.error:
            out.append(Score(None, name, f"no answer: {told.error}"))
        else:
            out.append(score(told.answer.text, item.truths, name))
    return tuple(out)


def _refused(outcome: Outcome) -> bool:
    """Whether the method gave no answer at all."""
    return any(s.note.startswith("no answer: ") for s in outcome.scores)
