"""Controls ask the interpreter about no diff, another diff, or noise of equal norm."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs.types import DenseDelta, LoraFactors, WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError, QuestionError
from weightdiff.methods.carrying import distinct
from weightdiff.methods.controls import Noise, Shuffled, WithoutDiff, noise_like
from weightdiff.models.merge import merged

QUESTION = "what topic have you been trained on ?"


def _alone(interpreter, diff, question):
    """The answer with a diff in the weights, nothing else in the batch."""
    if diff is None:
        return interpreter.ask(None, question, evidence=False).text
    with merged(interpreter.base.model, diff):
        return interpreter.ask(None, question, evidence=False).text


def _texts(answers):
    return [a.text for a in answers]


def test_without_diff_is_the_bare_base(interpreter, diffs):
    questions = [QUESTION, "what changed ?", QUESTION]
    found = WithoutDiff(interpreter).answer(diffs, questions)
    assert _texts(found) == [_alone(interpreter, None, q) for q in questions]
    assert {a.evidence for a in found} == {None}


def test_without_diff_still_checks_them(interpreter):
    with pytest.raises(BaseMismatchError, match="nowhere"):
        WithoutDiff(interpreter).answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], [QUESTION])


def test_shuffled_gives_every_diff_the_next_one(interpreter, diffs):
    a, b, c = diffs
    batch = [a, a, b, None, c, b]
    instead = [b, b, None, c, a, None]
    found = Shuffled(interpreter).answer(batch, [QUESTION] * 6)
    assert _texts(found) == [_alone(interpreter, d, QUESTION) for d in instead]


@pytest.mark.parametrize("times", [1, 3])
def test_shuffled_needs_two_diffs(interpreter, diffs, times):
    with pytest.raises(QuestionError, match=r"dit-shuffled was given one diff, .* give two or more"):
        Shuffled(interpreter).answer(diffs[:1] * times, [QUESTION] * times)


def test_noise_is_the_same_for_the_same_diff(interpreter, diffs):
    a, b, _ = diffs
    found = Noise(interpreter, seed=4).answer([b, None, a, b], [QUESTION] * 4)
    noise = [noise_like(b, 4), None, noise_like(a, 6), noise_like(b, 4)]
    assert _texts(found) == [_alone(interpreter, d, QUESTION) for d in noise]


def test_no_diffs_no_answers(interpreter):
    assert WithoutDiff(interpreter).answer([], []) == Noise(interpreter).answer([], []) == []
    assert Shuffled(interpreter).answer([], []) == []


def test_distinct_goes_by_identity(diffs):
    a, b, _ = diffs
    twin = WeightDiff(dict(a.modules))
    only, where = distinct([b, a, None, twin, a, None])
    assert all(x is y for x, y in zip(only, [b, a, None, twin], strict=True))
    assert where == [0, 1, 2, 3, 1, 2]


def test_noise_has_each_modules_rank_and_norm():
    diff = WeightDiff(
        {
            "a": LoraFactors(torch.randn(2, 7), torch.randn(5, 2), scale=-3.0),
            "b": LoraFactors(torch.randn(1, 4), torch.zeros(6, 1)),
        }
    )
    noise = noise_like(diff, seed=3)
    for name, m in diff.modules.items():
        other = noise.modules[name]
        assert isinstance(other, LoraFactors)
        assert (other.rank, other.in_features, other.out_features) == (m.rank, m.in_features, m.out_features)  # type: ignore[union-attr]
        torch.testing.assert_close(
            torch.linalg.matrix_norm(other.dense()), torch.linalg.matrix_norm(m.dense())
        )
    ours, theirs = diff.modules["a"].dense().flatten(), noise.modules["a"].dense().flatten()
    assert abs(float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))) < 0.9
    assert torch.equal(noise_like(diff, 3).modules["a"].dense(), noise.modules["a"].dense())


def test_noise_of_a_dense_diff_is_refused():
    with pytest.raises(FormatError, match="truncate"):
        noise_like(WeightDiff({"a": DenseDelta(torch.ones(2, 2))}), 0)


def test_noise_of_other_parameters_is_refused():
    with pytest.raises(FormatError, match=r"changes model\.norm\.weight; leave it out"):
        noise_like(WeightDiff({}, parameters={"model.norm.weight": torch.ones(3)}), 0)
