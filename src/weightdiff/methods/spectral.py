"""Spectral: the family of a diff, told by its singular values alone.

Method: after "Weight space Detection of Backdoors in LoRA Adapters" (arXiv 2602.15195), which tells poisoned
adapters from clean ones by a logistic regression on spectral statistics of each kind of module. Here it tells
families of finetunes apart; what a diff is about does not show in a spectrum, so no label is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from weightdiff.diffs import measures
from weightdiff.diffs.algebra import spectrum
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import StoreError
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import checked, distinct
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.questions import KIND_ANSWERS, kind_of
from weightdiff.training.tuning import usable

NULL = "null"
"""The family without a behaviour."""
SHARES = 3
"""So many of the largest singular values of a module are features, each over the sum of all."""
_SMALL = 1e-6
"""Norms below this count as this, so that they have a logarithm."""


@torch.no_grad()
def features(diff: WeightDiff, spec: Mapping[str, tuple[int, int]]) -> list[float]:
    """A diff in numbers that do not depend on how its factors are written: those of its canonical form.

    For each kind of module in turn: log norm; means over layers of stable rank, effective rank and the
    largest singular values' shares of their sum; share of the kind's energy in each layer. A module that does
    not change counts as zero. Embeddings and other parameters are left out.

    Args:
        diff: low-rank or dense.
        spec: the base's modules, which say what the numbers are about.

    Returns:
        As many numbers for every diff of the base.
    """
    kinds: dict[str, list[str]] = {}
    for name in spec:
        kinds.setdefault(measures.kind_of(name), []).append(name)
    out: list[float] = []
    for _, names in sorted(kinds.items()):
        values = [
            spectrum(diff.modules[n], measures.SKETCH_RANK).values
            if n in diff.modules
            else torch.zeros(1, dtype=torch.float64)
            for n in names
        ]
        energies = torch.stack([v.square().sum() for v in values])
        total = float(energies.sum())
        out.append(math.log(max(math.sqrt(total), _SMALL)))
        shapes = torch.stack([_shape(v) for v in values])
        out += shapes.mean(0).tolist()
        out += (energies / total if total > 0 else energies).tolist()
    return out


def _shape(values: Tensor) -> Tensor:
    """Stable rank, effective rank (Roy & Vetterli, 2007) and largest shares of a spectrum, [2 + SHARES]."""
    out = torch.zeros(2 + SHARES, dtype=torch.float64)
    if float(values.max()) <= 0:
        return out
    shares = values / values.sum()
    out[0] = (values / values.max()).square().sum()
    out[1] = torch.special.entr(shares).sum().exp()
    out[2 : 2 + min(SHARES, len(shares))] = shares[:SHARES]
    return out


@dataclass
class Spectral:
    """Shows how much the sizes and shapes of a diff's singular values give away: no model is run.

    Families whose organisms are trained with other rates or for other times differ in these alone; that a
    family is told says nothing about whether its behaviour can be seen.

    Raises:
        StoreError: the store has no training rows.
    """

    base: Base
    store: DiffStore
    """Diffs of the base whose families are known; the split "train" is read at the first question."""
    name: str = "spectral"

    def __post_init__(self) -> None:
        """Refuse a store without training rows."""
        if not self._rows:
            raise StoreError(
                f"{self.store.path}: no training rows; make some with: weightdiff organisms train --split"
                " train …"
            )

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """What the family of each diff answers to a question of that kind; the family stands in the notes.

        Which kind of change it is, is answered by the kind; whether there is a change, by "yes"; whatever
        else is asked of a diff that is no null diff, by the kind again. `logprob` is that of the family. No
        diff at all, and null diffs: "nothing found".

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        only, where = distinct(checked(self.base, diffs, questions))
        found = [None if diff is None else self._family(diff) for diff in only]
        return [_answer(found[k], q) for k, q in zip(where, questions, strict=True)]

    def _family(self, diff: WeightDiff) -> tuple[str, float]:
        """The likeliest family of a diff, with its probability."""
        names, shares = self._classifier(features(diff, self.base.spec))
        best = max(range(len(names)), key=lambda i: shares[i])
        return names[best], shares[best]

    @cached_property
    def _rows(self) -> list[DiffRow]:
        return usable(self.store.select(split="train"))

    @cached_property
    def _classifier(self) -> Callable[[list[float]], tuple[list[str], list[float]]]:
        """From a diff's features to the families' names and probabilities."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        families = [r.family for r in self._rows]
        names = sorted(set(families))
        if len(names) == 1:  # nothing to choose from
            return lambda _: (names, [1.0])
        # Chosen by cross-validation on 1,182 training rows of the embedded base, no label in two folds: this
        # and a random forest of 300 trees were right about every row, and the log loss was 0.002 to 0.011.
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        model.fit([features(self.store.read(r.id), self.base.spec) for r in self._rows], families)
        return lambda x: (names, model.predict_proba([x])[0].tolist())  # classes are sorted, as names are


def _answer(found: tuple[str, float] | None, question: str) -> Answer:
    """What a family (None: of no diff) says to a question."""
    if found is None:
        return Answer(NOTHING_FOUND)
    family, share = found
    if family == NULL:
        text = NOTHING_FOUND
    elif kind_of(question) == "any_change":
        text = "yes"
    else:
        text = KIND_ANSWERS.get(family, family)
    return Answer(text, round(math.log(max(share, 1e-300)), 4), notes=family)


@register("spectral", "the family of a diff, told by its singular values", ("store",), "sklearn")
def _spectral(context: Context) -> Method:
    return Spectral(context.base, context.required("store"))
