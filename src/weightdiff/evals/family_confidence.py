"""Rows on what stated probabilities are worth: calibration, a threshold, risk and coverage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from weightdiff.evals import comparison
from weightdiff.evals.families import MAX_FPR, NO_DIFF, OWN_KIND, Reply
from weightdiff.evals.family_goals import ALARMS, ALL, AUROC, ECE, EXACT, STILL
from weightdiff.evals.family_tables import Tables, pick
from weightdiff.evals.metrics import clustered_bootstrap
from weightdiff.methods.calibration import is_finding
from weightdiff.world.reports import HELD_OUT_KINDS, KIND_ANSWERS, NULL

TRAINED, HELD_OUT = "tuned kinds", "held-out kinds"
COVERED = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
BINS = 10
Floats = NDArray[np.float64]


def confidence(t: Tables, unseen: Sequence[Reply], threshold: float | None) -> None:
    """All rows about probabilities, over all test questions about diffs; none without a calibration.

    Args:
        t: gets the rows.
        unseen: replies to test phrasings.
        threshold: probability from which on findings are told; None: no rows about it.
    """
    asked = [r for r in unseen if r.probability is not None and r.recipe != NO_DIFF]
    if not asked:
        return
    groups = {
        ALL: asked,
        TRAINED: [r for r in asked if r.kind not in HELD_OUT_KINDS],
        HELD_OUT: [r for r in asked if r.kind in HELD_OUT_KINDS],
    }
    calibration(t, groups)
    if threshold is not None:
        at_threshold(t, groups, threshold)
    risk_and_coverage(t, asked)


def calibration(t: Tables, groups: dict[str, list[Reply]]) -> None:
    """How far stated probabilities are from shares, and how well they tell right answers from wrong ones."""
    t.name = "Calibration"
    by_family = {(f, ALL): pick(groups[ALL], family=f) for f in KIND_ANSWERS}
    for (family, kind), group in {**{(ALL, k): g for k, g in groups.items()}, **by_family}.items():
        if not group:
            continue
        right = np.array([r.marks[EXACT] for r in group])
        stated = np.array([r.probability for r in group], dtype=np.float64)
        clusters = [r.cluster for r in group]
        for metric, of in ((ECE, _error), (AUROC, _auroc)):
            mean, low, high = clustered_bootstrap(_at(of, right, stated), clusters)
            # resampling adds to an error that cannot be negative, so that its lower end may lie above it
            estimate = mean, min(low, mean), max(high, mean)
            chance = 0.5 if metric == AUROC else None
            if not math.isnan(mean):
                t.add(estimate, len(group), len(set(clusters)), (family, ALL, kind, metric), chance=chance)


def _at(
    of: Callable[[Floats, Floats], float], right: Floats, stated: Floats
) -> Callable[[NDArray[np.intp]], float]:
    return lambda at: of(right[at], stated[at])


def _error(right: Floats, stated: Floats) -> float:
    return comparison.expected_calibration_error(right, stated, BINS)


def _auroc(right: Floats, stated: Floats) -> float:
    """NaN where all answers are right, or none is."""
    if right.min() == right.max():
        return math.nan
    return comparison.auroc(stated[right == 1], stated[right == 0])


def at_threshold(t: Tables, groups: dict[str, list[Reply]], threshold: float) -> None:
    """With findings below the threshold withheld: findings where nothing is, and answers that stay right."""
    t.name = f"At the threshold for {MAX_FPR:.0%} false positives"
    note = f"threshold {threshold:.3f}"
    for kind, group in groups.items():
        null = pick(group, family=NULL)
        found = [float(_told(r, threshold) and is_finding(r.answer)) for r in null]
        t.mean(found, [r.cluster for r in null], (NULL, ALL, kind, ALARMS), note=note)
    own = [r for r in groups[ALL] if OWN_KIND.get(r.family) == r.kind]
    by_family = {(f, ALL): pick(groups[ALL], family=f) for f in KIND_ANSWERS if f != NULL}
    wanted = {**{(ALL, k): g for k, g in groups.items()}, (ALL, "own"): own, **by_family}
    for (family, kind), group in wanted.items():
        answerable = [r for r in group if r.family != NULL and is_finding(r.truth)]
        clusters = [r.cluster for r in answerable]
        kept = [r.marks[EXACT] * _told(r, threshold) for r in answerable]
        t.share(answerable, (family, ALL, kind, "right without a threshold"))
        t.mean(kept, clusters, (family, ALL, kind, STILL), note=note)


def _told(reply: Reply, threshold: float) -> bool:
    """Whether an answer passes the threshold; what is no finding always does."""
    return not is_finding(reply.answer) or (reply.probability or 0.0) >= threshold


def risk_and_coverage(t: Tables, asked: Sequence[Reply]) -> None:
    """Right answers among those that the interpreter is surest of; equally sure ones are kept together."""
    t.name = "Risk and coverage"
    order = sorted((r.probability or 0.0 for r in asked), reverse=True)
    for share in COVERED:
        least = order[math.ceil(share * len(order)) - 1]
        kept = [r for r in asked if (r.probability or 0.0) >= least]
        note = f"{len(kept) / len(order):.1%} of the answers, from a probability of {least:.3f} on"
        t.share(kept, (ALL, ALL, ALL, f"right among the surest {share:.0%}"), note=note)
