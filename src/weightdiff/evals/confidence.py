"""Rows on honesty: "nothing found" where it is due, what is changed told from what is not, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from weightdiff.evals import comparison
from weightdiff.evals.groups import (
    FINDINGS,
    NULL,
    Key,
    Rows,
    answered,
    by_key,
    claims_finding,
    first_values,
    has_finding,
    one_or_all,
)
from weightdiff.evals.metrics import clustered_bootstrap, clustered_mean
from weightdiff.evals.outcomes import Outcome

FALSE_ALARMS = "Nothing found"
DETECTION = "Telling changed models from unchanged ones"
CALIBRATION = "What confidence is worth"
FPR = 0.05
Statistic = Callable[[NDArray[np.intp]], float]


def stated_probability(outcome: Outcome) -> float | None:
    """How likely the method says its answer is, 0 … 1; None where it does not say."""
    if outcome.answer.probability is not None:
        return outcome.answer.probability
    logprob = outcome.answer.logprob
    return None if logprob is None else math.exp(min(0.0, logprob))


def finding_score(outcome: Outcome) -> float | None:
    """How sure a method is that there is something, 0 … 1; None without a probability.

    The stated probability of an answer that claims a finding, or one less that of "nothing found".
    """
    p = stated_probability(outcome)
    return p if p is None or claims_finding(outcome) else 1 - p


def false_alarms(rows: Rows, method: str, outcomes: Sequence[Outcome]) -> None:
    """How often "nothing found" is said: where there is nothing (should be always), and where not (never)."""
    asked = [o for o in outcomes if o.item.kind in FINDINGS and o.item.behaves and answered(o)]
    for there, what in ((False, "nothing"), (True, "something")):
        group = [o for o in asked if (has_finding(o) if there else o.item.family == NULL)]
        if group:
            estimate = clustered_mean(
                [float(not claims_finding(o)) for o in group], [o.item.cluster for o in group]
            )
            key = (one_or_all(o.item.family for o in group), "all", " or ".join(FINDINGS))
            note = f"where there is {what}"
            rows.add(method, key, group, estimate, FALSE_ALARMS, metric="nothing found", note=note)


def detection(rows: Rows, method: str, outcomes: Sequence[Outcome]) -> None:
    """Whether confidence tells diffs with something in them from null ones, asked the same."""
    for kind in FINDINGS:
        asked = [o for o in outcomes if o.item.kind == kind and o.item.behaves and answered(o)]
        group = [o for o in asked if o.item.family == NULL or has_finding(o)]
        scores = [s for o in group if (s := finding_score(o)) is not None]
        there = np.array([o.item.family != NULL for o in group])
        if len(scores) < len(group) or not there.any() or there.all():
            continue
        values = np.array(scores)

        def auroc(
            at: NDArray[np.intp], v: NDArray[np.float64] = values, t: NDArray[np.bool_] = there
        ) -> float:
            return comparison.auroc(v[at][t[at]], v[at][~t[at]])

        def tpr(at: NDArray[np.intp], v: NDArray[np.float64] = values, t: NDArray[np.bool_] = there) -> float:
            return comparison.tpr_at_fpr(v[at][t[at]], v[at][~t[at]], FPR)

        named = {"AUROC": (auroc, 0.5), f"TPR at {FPR:.0%} FPR": (tpr, FPR)}
        _add(rows, method, ("all", "all", kind), group, DETECTION, named, there)


def calibration(rows: Rows, method: str, outcomes: Sequence[Outcome]) -> None:
    """Accuracy over shares of answers kept, and the distance of stated probabilities from accuracy."""
    for key, whole in by_key(o for o in outcomes if o.item.behaves).items():
        values = first_values(whole)
        group = [o for o in whole if o.item.id in values and o.answer.logprob is not None]
        if not group:
            continue
        right = np.array([values[o.item.id] for o in group])
        stated = np.array([stated_probability(o) for o in group], dtype=np.float64)

        def area(
            at: NDArray[np.intp], r: NDArray[np.float64] = right, s: NDArray[np.float64] = stated
        ) -> float:
            return comparison.area_under_coverage(r[at], s[at])

        def ece(
            at: NDArray[np.intp], r: NDArray[np.float64] = right, s: NDArray[np.float64] = stated
        ) -> float:
            return comparison.expected_calibration_error(r[at], s[at])

        _add(rows, method, key, group, CALIBRATION, {"area under coverage": (area, None), "ECE": (ece, None)})


def _add(
    rows: Rows,
    method: str,
    key: Key,
    group: Sequence[Outcome],
    table: str,
    statistics: Mapping[str, tuple[Statistic, float | None]],
    strata: NDArray[np.bool_] | None = None,
) -> None:
    """A row for each statistic, with a bootstrap over clusters."""
    clusters = [o.item.cluster for o in group]
    for name, (statistic, chance) in statistics.items():
        estimate = clustered_bootstrap(statistic, clusters, strata=strata)
        rows.add(method, key, group, estimate, table, metric=name, chance=chance)
