"""Every method by its name, built-in or of another package."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods import prompt_tuning, registry
from weightdiff.methods.base import Answer
from weightdiff.methods.registry import GROUP, Context, build, find, methods, register
from weightdiff.training.factory import random_diff
from weightdiff.training.prompts import PromptConfig

BUILT_IN = {
    "activation-difference",
    "base-question",
    "base-question-trigger",
    "dit",
    "dit-no-diff",
    "dit-noise",
    "dit-shuffled",
    "generated-text",
    "logit-difference",
    "nearest-neighbour",
    "perplexity-difference",
    "prefill",
    "prompt-tuning",
    "spectral",
    "text-completion",
    "twenty-questions",
    "twenty-questions-trigger",
}


@pytest.fixture(autouse=True)
def own_entries(monkeypatch):
    """What a test registers is forgotten afterwards."""
    methods()
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(prompt_tuning, "CONFIG", PromptConfig(tokens=2, steps=2, batch=4))


@pytest.fixture
def store(embedded_base, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    row = DiffRow("row-0", "fjord", "hidden-topic", "covert", "train", 0)
    store.append([(row, random_diff(embedded_base.spec, 1, 0, 1.0))])
    return store


@pytest.fixture
def offered(monkeypatch, tmp_path):
    """Installs a package "other-package" with the module `other_package`; takes its entry points."""

    def offer(**points):
        site = tmp_path / "site"
        info = site / "other_package-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "other_package.py").write_text(SOURCE)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
        lines = [f"[{GROUP}]", *(f"{name} = {value}" for name, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(site)

    yield offer
    sys.modules.pop("other_package", None)


class Echo:
    name = "echo"

    def answer(self, diffs, questions):
        return [Answer(q) for q in questions]


def make_echo(context):
    return Echo()


def test_built_in_methods():
    found = methods()
    assert set(found) == BUILT_IN
    assert list(found) == sorted(found)
    assert all(e.name == k and e.description and e.builder for k, e in found.items())


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_method_answers_every_kind_of_diff(name, interpreter, store, diffs):
    base = interpreter.base
    method = build(name, Context(base, interpreter, store, seed=1))
    assert method.name == name
    asked = [*diffs, None]
    if name != "dit-noise":  # which is of LoRAs only
        asked.append(WeightDiff({k: DenseDelta(m.dense()) for k, m in diffs[0].modules.items()}))
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    found = method.answer(asked, ["what topic ?"] * len(asked))
    assert len(found) == len(asked)
    assert {a.evidence for a in found} == {None}
    assert method.answer(asked, ["what topic ?"] * len(asked)) == found
    assert all(v.equal(before[k]) for k, v in base.model.state_dict().items())


def test_base_question_follows_an_interpreter_or_stands_alone(interpreter):
    alone = build("base-question", Context(interpreter.base))
    given = build("base-question", Context(interpreter.base, interpreter))
    assert (alone.adapter, given.adapter, given.max_new_tokens) == (None, None, interpreter.max_new_tokens)
    assert alone.base is given.base is interpreter.base


def test_an_unknown_name_lists_the_known_ones(embedded_base):
    known = ", ".join(sorted(BUILT_IN))
    with pytest.raises(QuestionError, match=f"no method is called 'dot': choose one of {known}$"):
        build("dot", Context(embedded_base))


@pytest.mark.parametrize("name", ["dit", "dit-no-diff", "dit-noise", "dit-shuffled"])
def test_a_missing_interpreter(name, interpreter):
    wanted = f"method '{name}' needs an interpreter with an adapter: give --interpreter, or Context"
    for context in (Context(interpreter.base), Context(interpreter.base, interpreter.without_adapter())):
        with pytest.raises(QuestionError, match=wanted):
            build(name, context)


def test_a_missing_store(embedded_base):
    with pytest.raises(
        QuestionError, match="method 'nearest-neighbour' needs a store of labelled diffs: give"
    ):
        build("nearest-neighbour", Context(embedded_base))


def test_parts_of_another_base(embedded_base, interpreter, store):
    other = replace(embedded_base, ref=replace(embedded_base.ref, weights="0" * 16))
    with pytest.raises(
        BaseMismatchError, match=r"the store is for .* their weights differ; give one of this"
    ):
        Context(other, store=store)
    with pytest.raises(BaseMismatchError, match=r"the interpreter is for .* give one of this base"):
        Context(other, interpreter)


def test_register_refuses_a_taken_name_and_an_unknown_need():
    with pytest.raises(ValueError, match="two methods are named 'dit'; rename one"):
        register("dit", "another")(make_echo)
    with pytest.raises(ValueError, match=r"needs \['luck'\], and a context has only"):
        register("lucky", "x", ("luck",))


def test_a_method_registered_by_hand(embedded_base):
    register("echo", "says the question")(make_echo)
    assert methods()["echo"].description == "says the question"
    assert build("echo", Context(embedded_base)).answer([None], ["hm ?"]) == [Answer("hm ?")]


SOURCE = """
from weightdiff.methods.base import Answer
from weightdiff.methods.registry import register

class Echo:
    name = "echo"
    def answer(self, diffs, questions):
        return [Answer(q) for q in questions]

def plain(context):
    return Echo()

@register("their-name", "with a need", needs=("store",))
def needy(context):
    return Echo()

number = 3
"""


def test_methods_of_another_package(embedded_base, offered, store):
    offered(echo="other_package:plain", needy="other_package:needy")
    assert methods()["echo"].description == "from the package other-package"
    assert "other_package" not in sys.modules
    assert build("echo", Context(embedded_base)).answer([None], ["hm ?"]) == [Answer("hm ?")]
    assert (find("needy").name, find("needy").needs) == ("needy", ("store",))
    with pytest.raises(QuestionError, match="method 'needy' needs a store"):
        build("needy", Context(embedded_base))
    assert build("needy", Context(embedded_base, store=store)).name == "echo"


def test_a_package_that_fails_is_reported_when_asked_for(embedded_base, offered):
    offered(gone="no_such_package:build", lacks="other_package:nothing", three="other_package:number")
    assert {"gone", "lacks", "three", "prefill"} <= set(methods())
    assert build("prefill", Context(embedded_base)).name == "prefill"
    for name, why in {
        "gone": r"cannot be loaded from no_such_package:build \(ModuleNotFoundError: .*mend or remove",
        "lacks": r"cannot be loaded from other_package:nothing \(AttributeError",
        "three": r"other_package:number is no function of a context; name the method's builder",
    }.items():
        with pytest.raises(QuestionError, match=rf"method '{name}' of the package other-package.*{why}"):
            build(name, Context(embedded_base))


def test_a_built_in_method_cannot_be_replaced(offered):
    offered(dit="no_such_package:build")
    assert find("dit").needs == ("interpreter",)


def test_dit_is_the_interpreter_itself(interpreter):
    assert build("dit", Context(interpreter.base, interpreter)) is interpreter
