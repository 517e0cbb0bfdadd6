"""Our scorers in inspect_ai: one scorer, which knows from each sample what its answer is graded by.

What an answer is worth is decided in `scorers`. A grade that fails is inspect's "unscored" (NaN): no metric
has it, and the log counts it.
"""

from __future__ import annotations

from collections.abc import Sequence

from inspect_ai.scorer import Score, Scorer, Target, grouped, mean, scorer, stderr
from inspect_ai.solver import TaskState

from weightdiff.errors import QuestionError
from weightdiff.evals import scorers as ours
from weightdiff.evals.inspect_errors import one_line
from weightdiff.evals.inspect_solver import ANSWER

SCORERS_OF = "scorers"
"""Key of a sample's metadata for the names of its scorers."""


@scorer(
    metrics=[
        mean(),
        stderr(cluster="cluster"),
        grouped(mean(), "kind", all=False),
        grouped(stderr(cluster="cluster"), "kind", all=False, name_template="{group_name} stderr"),
        grouped(mean(), "recipe", all=False, name_template="recipe {group_name}"),
    ]
)
def weightdiff_scorer(scorers: str | list[str] | None = None) -> Scorer:
    """Grades the answer by the sample's own scorers, or by those that are named.

    The first one's value is the score; the others' are in its metadata. Scorers that are no function of the
    answer (of the truth's rank, of a model) are passed over; where the solver ranked the truth, its rank is
    in the metadata.

    Args:
        scorers: names in `evals.scorers.SCORERS`; None for those that each sample brings.

    Raises:
        PrerequisiteError: no scorer is called so.
    """
    named = [scorers] if isinstance(scorers, str) else scorers
    with one_line():
        for name in named or ():
            if name not in ours.SCORERS:
                raise QuestionError(
                    f"no scorer is called {name!r}: choose of {', '.join(sorted(ours.SCORERS))}"
                )

    async def grade(state: TaskState, target: Target) -> Score:
        told = state.metadata.get(ANSWER) or {}
        wanted = named or [n for n in state.metadata.get(SCORERS_OF, ()) if n in ours.SCORERS]
        said = state.output.completion
        if error := told.get("error"):
            return Score.unscored(reason="no_response", explanation=f"no answer: {error}")
        if not wanted:
            return Score.unscored(
                reason="scoring_failed", answer=said, explanation="the sample names no scorer of an answer"
            )
        rank = {"rank": told["rank"]} if "rank" in told else {}
        return _score(said, list(target), wanted, rank)

    return grade


def _score(said: str, truths: Sequence[str], names: Sequence[str], rank: dict[str, int]) -> Score:
    """The first scorer's score, with what the others say."""
    try:
        found = [ours.score(said, truths, name) for name in names]
    except QuestionError as error:  # truths that a scorer is not made for
        return Score.unscored(reason="scoring_failed", answer=said, explanation=str(error))
    details = {**{s.scorer: s.value for s in found}, **rank}
    first = found[0]
    if first.value is None:
        return Score.unscored(
            reason="invalid_response_format", answer=said, explanation=first.note, metadata=details
        )
    return Score(
        value=first.value,
        answer=said,
        explanation=f"{first.scorer}: {first.value:g}; the truth is {truths[0]!r}",
        metadata=details,
    )
