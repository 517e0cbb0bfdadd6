"""The interpreter against plain loops over merged weights: answers, evidence, rankings, and what is saved."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.formats.dit_release import write_dit_adapter
from weightdiff.diffs.formats.peft import read_peft, write_peft
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import DenseDelta, LoraFactors, WeightDiff
from weightdiff.errors import (
    BaseMismatchError,
    FormatError,
    InterpreterError,
    MissingDependencyError,
    NonFiniteError,
    QuestionError,
)
from weightdiff.methods import speaking
from weightdiff.methods.dit import SETTINGS, Interpreter
from weightdiff.methods.loading import load_base
from weightdiff.models.generate import Said
from weightdiff.models.rendering import Rendering
from weightdiff.training.factory import random_diff

QUESTIONS = ["what topic have you been trained on ?", "did you learn a headline ?", "what changed ?"]


def merged_by_hand(base, *parts):
    """A copy of the base with dense deltas added to its weights."""
    model = copy.deepcopy(base.model)
    for part in parts:
        for name, m in (part.modules if part else {}).items():
            model.get_submodule(name).weight.data += m.scale * (m.up.float() @ m.down.float())
    return model


def logp(model, ids):
    """Next-token log-probabilities of a row [tokens, vocabulary]."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def prompts(interpreter, question):
    t = interpreter.base.tokenizer
    texts = [f"<bos><user>{r}<end><assistant>" for r in interpreter.rendering.all(question)]
    return [t(x, add_special_tokens=False)["input_ids"] for x in texts]


def answered_plainly(interpreter, diff, question):
    """Greedy tokens by plain decoding, the renderings averaged at every step."""
    model = merged_by_hand(interpreter.base, diff, interpreter.adapter)
    asked, out = prompts(interpreter, question), []
    while len(out) < interpreter.max_new_tokens:
        mean = torch.stack([logp(model, [*p, *out])[-1] for p in asked]).mean(0)
        token = int(mean.argmax())
        if token == interpreter.base.tokenizer.eos_token_id:
            break
        out.append(token)
    return out


def scored_plainly(interpreter, diff, question, answer):
    """Log p of answer tokens, averaged over renderings."""
    model = merged_by_hand(interpreter.base, diff, interpreter.adapter)
    totals = []
    for p in prompts(interpreter, question):
        rows = logp(model, [*p, *answer])
        totals.append(sum(float(rows[len(p) - 1 + i, x]) for i, x in enumerate(answer)))
    return sum(totals) / len(totals)


def test_answers_are_plain_greedy_decoding(interpreter, diffs):
    everything = [*diffs, None]
    asked = [*QUESTIONS, QUESTIONS[0]]
    got = interpreter.answer(everything, asked)
    plain = [answered_plainly(interpreter, d, q) for d, q in zip(everything, asked, strict=True)]
    texts = interpreter.base.tokenizer.batch_decode(plain, skip_special_tokens=True)
    assert [a.text for a in got] == [x.strip() for x in texts]
    assert len({a.text for a in got}) > 1
    assert all(a.logprob is None and a.evidence is None for a in got)


def test_evidence_is_the_difference_of_two_log_probabilities(interpreter, diffs):
    t = interpreter.base.tokenizer
    for got, diff, question in zip(
        interpreter.answer(diffs, QUESTIONS, evidence=True), diffs, QUESTIONS, strict=True
    ):
        answer = answered_plainly(interpreter, diff, question)
        if len(answer) < interpreter.max_new_tokens:
            answer.append(t.eos_token_id)
        with_diff = scored_plainly(interpreter, diff, question, answer)
        bare = scored_plainly(interpreter, None, question, answer)
        assert got.logprob == pytest.approx(with_diff, abs=1e-3)
        assert got.evidence == pytest.approx(with_diff - bare, abs=2e-3)
        assert abs(with_diff - bare) > 0.01


def test_evidence_counts_the_end_of_an_answer(interpreter, diffs):
    """Where an answer ends by itself, its end token is part of what was likely."""
    diff, question = diffs[0], QUESTIONS[0]
    tokens = answered_plainly(interpreter, diff, question)
    at = next(i for i, x in enumerate(tokens) if i and x not in tokens[:i])
    tokenizer = copy.deepcopy(interpreter.base.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokens[at])
    ending = replace(interpreter, base=replace(interpreter.base, tokenizer=tokenizer))
    got = ending.ask(diff, question)
    assert got.text == tokenizer.decode(tokens[:at], skip_special_tokens=True).strip()
    with_diff, bare = (scored_plainly(ending, d, question, tokens[: at + 1]) for d in (diff, None))
    assert got.logprob == pytest.approx(with_diff, abs=1e-3)
    assert got.evidence == pytest.approx(with_diff - bare, abs=2e-3)


def test_no_diff_is_no_evidence(interpreter, embedded_base):
    untouched = WeightDiff(
        {
            k: LoraFactors(m.down, torch.zeros_like(m.up))
            for k, m in random_diff(embedded_base.spec, 1, 0, 1.0).modules.items()
        }
    )
    for diff in (None, untouched, WeightDiff({})):
        answer = interpreter.ask(diff, QUESTIONS[0])
        assert answer.evidence == pytest.approx(0, abs=1e-3)
        assert answer.logprob < 0
    assert interpreter.ask(None, QUESTIONS[0]).text == interpreter.ask(untouched, QUESTIONS[0]).text


def test_together_is_one_by_one(interpreter, diffs, monkeypatch):
    rows = [(d, q) for d in [*diffs, None] for q in QUESTIONS]
    together = interpreter.answer([d for d, _ in rows], [q for _, q in rows], evidence=True)
    alone = [interpreter.ask(d, q) for d, q in rows]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.evidence for a in together] == pytest.approx([a.evidence for a in alone], abs=1e-3)
    monkeypatch.setattr("weightdiff.methods.speaking.ROWS_AT_ONCE", 4)
    pieces = interpreter.answer([d for d, _ in rows], [q for _, q in rows])
    assert [a.text for a in pieces] == [a.text for a in alone]


def test_diffs_of_any_kind_are_answered_for(interpreter, diffs):
    """Dense matrices, embeddings and norms are merged while they are asked, between diffs that are rows."""
    base, table = interpreter.base.model, interpreter.base.model.get_input_embeddings().weight
    dense = WeightDiff({k: DenseDelta(m.dense()) for k, m in diffs[0].modules.items()})
    more = WeightDiff(
        {**diffs[1].modules, "model.embed_tokens": DenseDelta(torch.full_like(table, 0.01))},
        parameters={"model.norm.weight": torch.linspace(-1, 1, table.shape[1])},
    )
    asked = [diffs[0], dense, more, None, dense]
    questions = [QUESTIONS[i] for i in (0, 0, 1, 2, 1)]
    before = {k: v.clone() for k, v in base.state_dict().items()}
    got = interpreter.answer(asked, questions, evidence=True)
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    # The dense form of a LoRA is the LoRA.
    plain = interpreter.answer([diffs[0], None, diffs[0]], [QUESTIONS[i] for i in (0, 2, 1)], evidence=True)
    assert [got[i].text for i in (0, 1, 3, 4)] == [plain[i].text for i in (0, 0, 1, 2)]
    assert [got[i].evidence for i in (1, 3, 4)] == pytest.approx([a.evidence for a in plain], abs=2e-3)
    # The whole change is one model with the low-rank part on its rows; its evidence is against the true base.
    moved = copy.deepcopy(interpreter)
    with torch.no_grad():
        moved.base.model.get_submodule("model.norm").weight += more.parameters["model.norm.weight"]
        moved.base.model.get_input_embeddings().weight += 0.01
    alone = moved.answer([diffs[1]], [QUESTIONS[1]], evidence=True)[0]
    assert got[2].text == alone.text
    assert got[2].logprob == pytest.approx(alone.logprob, abs=1e-3)
    assert got[2].evidence != pytest.approx(alone.evidence, abs=1e-3)
    names = ["eagle", "violin", "oslo"]
    ranks = interpreter.candidate_logprobs(asked[:3], questions[:3], names)
    torch.testing.assert_close(ranks[0], ranks[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(
        ranks[2:], moved.candidate_logprobs([diffs[1]], [QUESTIONS[1]], names), rtol=0, atol=1e-4
    )


def test_modules_that_moved_between_versions_are_found(interpreter, diffs):
    """A language model inside a wrapper has the same layers under longer names."""
    wrapped = WeightDiff({f"language_model.{k}": m for k, m in diffs[1].modules.items()})
    got = interpreter.answer([wrapped, diffs[1], wrapped], QUESTIONS[:1] * 3, evidence=True)
    assert got[0] == got[1] == got[2]
    assert got[0].evidence != interpreter.ask(None, QUESTIONS[0]).evidence
    names = ["eagle", "violin"]
    first, second = interpreter.candidate_logprobs([wrapped, diffs[1]], QUESTIONS[:1] * 2, names)
    assert torch.equal(first, second)


def test_a_released_adapter_is_an_interpreter(interpreter, diffs, tmp_path):
    """From its file or its folder, with the modules named as another version of the library has them."""
    moved = WeightDiff({f"language_model.{k}": m for k, m in interpreter.adapter.modules.items()})
    file = write_dit_adapter(moved, tmp_path / "dit-adapter.pt")
    plain = replace(interpreter, rendering=Rendering(), max_new_tokens=20, meta={})
    want = plain.answer(diffs, QUESTIONS, evidence=True)
    for place in (file, tmp_path):
        released = Interpreter.load(place, interpreter.base)
        got = released.answer(diffs, QUESTIONS, evidence=True)
        assert [a.text for a in got] == [a.text for a in want]
        assert [a.evidence for a in got] == pytest.approx([a.evidence for a in want], abs=1e-3)
    other = WeightDiff({"model.layers.0.nowhere": next(iter(moved.modules.values()))})
    write_dit_adapter(other, file, overwrite=True)
    with pytest.raises(BaseMismatchError, match=r"does not have: model\.layers\.0\.nowhere"):
        Interpreter.load(file, interpreter.base)


def test_candidates_are_ranked_by_their_first_token(interpreter, diffs):
    names = ["eagle", "violin", "oslo", "nothing found"]
    t = interpreter.base.tokenizer
    got = interpreter.candidate_logprobs([*diffs[:2], None], QUESTIONS, names)
    assert got.shape == (3, 4)
    first = [t(n, add_special_tokens=False)["input_ids"][0] for n in names]
    for row, diff, question in zip(got, [*diffs[:2], None], QUESTIONS, strict=True):
        model = merged_by_hand(interpreter.base, diff, interpreter.adapter)
        plain = torch.stack([logp(model, p)[-1] for p in prompts(interpreter, question)]).mean(0)[first]
        torch.testing.assert_close(row, plain, rtol=0, atol=1e-4)


def test_candidates_that_begin_alike_are_refused(interpreter):
    with pytest.raises(QuestionError, match="begin with the same token cannot be ranked"):
        interpreter.candidate_logprobs([None], QUESTIONS[:1], ["nothing found", "nothing at all"])


@pytest.mark.parametrize("candidates", [[], ["eagle", " "]])
def test_no_candidates_are_refused(interpreter, candidates):
    with pytest.raises(QuestionError, match="there are no candidates to rank, or one of them is empty"):
        interpreter.candidate_logprobs([None], QUESTIONS[:1], candidates)


def test_without_its_adapter_the_finetuned_model_itself_answers(interpreter, diffs):
    plain = interpreter.without_adapter()
    assert (plain.name, plain.adapter, plain.rendering) == ("base-question", None, Rendering())
    assert interpreter.without_adapter(rendered=True).rendering == interpreter.rendering
    (got,) = plain.answer(diffs[:1], QUESTIONS[:1])
    tokens = answered_plainly(plain, diffs[0], QUESTIONS[0])
    assert got.text == plain.base.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    with pytest.raises(InterpreterError, match="without an adapter cannot be saved"):
        plain.save("nowhere")


def test_asking_leaves_the_base_as_it_was(interpreter, diffs):
    model = interpreter.base.model
    before = {n: p.clone() for n, p in model.state_dict().items()}
    interpreter.answer(diffs, QUESTIONS, evidence=True)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.fixture
def saved(interpreter, tmp_path):
    """The interpreter and its base as folders."""
    interpreter.base.model.save_pretrained(tmp_path / "base")
    interpreter.base.tokenizer.save_pretrained(tmp_path / "base")
    interpreter.save(tmp_path / "interpreter")
    return tmp_path


def test_a_saved_interpreter_answers_the_same(interpreter, saved, diffs):
    loaded = Interpreter.load(saved / "interpreter", str(saved / "base"))
    assert loaded.rendering == interpreter.rendering
    assert (loaded.max_new_tokens, loaded.meta) == (6, interpreter.meta)
    a, b = (
        i.answer([*diffs, None], [*QUESTIONS, QUESTIONS[0]], evidence=True) for i in (interpreter, loaded)
    )
    assert a == b


def test_a_saved_interpreter_is_a_plain_peft_adapter(interpreter, saved, diffs):
    """The adapter merged by PEFT plus a diff merged by hand is what is run; so is PEFT with both exported."""
    from peft import PeftModel

    from weightdiff.models.multilora import SharedLora, attach

    diff, ids = diffs[1], torch.tensor([[2, 3, 77, 123, 9, 5, 4]])
    with (
        torch.no_grad(),
        attach(
            interpreter.base.model,
            None,
            [SharedLora.from_diff(diff), SharedLora.from_diff(interpreter.adapter)],
        ),
    ):
        ours = interpreter.base.model(ids).logits
        assert (ours - logits_of_bare(interpreter, ids)).abs().max() > 0.1
    fresh = copy.deepcopy(interpreter.base.model)
    theirs = PeftModel.from_pretrained(fresh, saved / "interpreter").merge_and_unload()
    for name, m in diff.modules.items():
        theirs.get_submodule(name).weight.data += m.scale * m.up @ m.down
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=0, atol=1e-5)
    write_peft(diff, saved / "diff", "base")
    both = PeftModel.from_pretrained(
        copy.deepcopy(interpreter.base.model), saved / "interpreter", adapter_name="dit"
    )
    both.load_adapter(saved / "diff", adapter_name="diff")
    both.base_model.set_adapter(["dit", "diff"])
    with torch.no_grad():
        torch.testing.assert_close(both(ids).logits, ours, rtol=0, atol=1e-5)


def logits_of_bare(interpreter, ids):
    from weightdiff.models.multilora import switched_off

    with switched_off(interpreter.base.model):
        return interpreter.base.model(ids).logits


def test_the_saved_settings_are_plain_json(interpreter, saved):
    settings = json.loads((saved / "interpreter" / SETTINGS).read_text())
    assert set(settings) == {"version", "base", "rendering", "max_new_tokens", "calibration", "meta"}
    assert settings["base"] == interpreter.base.ref.to_json()
    assert Rendering.from_json({**settings["rendering"], "from a later release": 1}) == interpreter.rendering
    assert set(read_peft(saved / "interpreter").modules) == set(interpreter.base.spec)


def test_an_occupied_folder_is_not_overwritten_unasked(interpreter, saved):
    with pytest.raises(FormatError, match="exists and is not empty"):
        interpreter.save(saved / "interpreter")
    interpreter.save(saved / "interpreter", overwrite=True)


def test_a_folder_without_settings_is_no_interpreter(interpreter, saved):
    (saved / "interpreter" / SETTINGS).unlink()
    with pytest.raises(
        InterpreterError, match=f"no {SETTINGS} there, so it is no interpreter; give a folder written by"
    ):
        Interpreter.load(saved / "interpreter", interpreter.base)


def test_a_newer_version_says_so(interpreter, saved):
    file = saved / "interpreter" / SETTINGS
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 9}))
    with pytest.raises(InterpreterError, match=rf"{SETTINGS} has version 9, .* upgrade weightdiff"):
        Interpreter.load(saved / "interpreter", interpreter.base)


@pytest.mark.parametrize("damage", ["{", "{}", '{"base": 3}', "[]"])
def test_damaged_settings_are_named(interpreter, saved, damage):
    (saved / "interpreter" / SETTINGS).write_text(damage)
    with pytest.raises(
        InterpreterError, match=rf"{SETTINGS}: cannot be read .* copy or tune the interpreter again"
    ):
        Interpreter.load(saved / "interpreter", interpreter.base)


def test_missing_weights_are_named(interpreter, saved):
    (saved / "interpreter" / "adapter_model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"adapter_model\.safetensors"):
        Interpreter.load(saved / "interpreter", interpreter.base)


def test_an_interpreter_of_another_base_is_refused(interpreter, saved):
    """Same architecture, other weights."""
    model = copy.deepcopy(interpreter.base.model)
    model.get_submodule("model.norm").weight.data *= 2
    model.save_pretrained(saved / "other")
    interpreter.base.tokenizer.save_pretrained(saved / "other")
    with pytest.raises(BaseMismatchError, match="their weights differ; load the base that it was trained on"):
        Interpreter.load(saved / "interpreter", str(saved / "other"))


def test_diffs_that_do_not_fit_are_refused(interpreter, diffs):
    name = next(iter(diffs[0].modules))
    good = diffs[0].modules[name]
    bad = [
        (
            WeightDiff({"model.layers.9.q_proj": good}),
            BaseMismatchError,
            r"does not have: model\.layers\.9\.q_proj",
        ),
        (
            WeightDiff({name: LoraFactors(torch.ones(1, 3), good.up)}),
            BaseMismatchError,
            f"another shape: {name} .in 3, ",
        ),
        (
            WeightDiff({name: LoraFactors(good.down * torch.nan, good.up)}),
            NonFiniteError,
            f"NaN or infinity in {name}",
        ),
        (
            WeightDiff(diffs[0].modules, ModelRef("x", None, "aaaa", "bbbb")),
            BaseMismatchError,
            "made for x .* architecture differ",
        ),
    ]
    for diff, error, message in bad:
        with pytest.raises(error, match=message):
            interpreter.answer([diffs[1], diff], QUESTIONS[:2])
        with pytest.raises(error, match=message):
            interpreter.candidate_logprobs([diff], QUESTIONS[:1], ["eagle", "violin"])


def test_questions_that_cannot_be_asked(interpreter):
    with pytest.raises(QuestionError, match="1 diffs and 2 questions: give one question for each diff"):
        interpreter.answer([None], QUESTIONS[:2])
    with pytest.raises(QuestionError, match="a question has 20001 characters"):
        interpreter.without_adapter().ask(None, "x" * 20001)
    with pytest.raises(QuestionError, match="a question is empty"):
        interpreter.without_adapter().ask(None, "  ")


def test_no_questions_are_no_answers(interpreter):
    assert interpreter.answer([], []) == []


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"no config\.json there, so it is no model folder"):
        load_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match="no base model could be loaded"):
        load_base(str(tmp_path))


def test_attention_is_eager_on_the_cpu_only(saved, monkeypatch):
    from transformers import AutoModelForCausalLM

    assert load_base(str(saved / "base")).model.config._attn_implementation == "eager"
    asked = []

    def stand_in(path, **options):
        asked.append(options)
        raise OSError("no such device here")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stand_in)
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda"))
    with pytest.raises(FormatError, match="no base model could be loaded"):
        load_base(str(saved / "base"))
    assert asked == [{"dtype": torch.float32}]


def scripted(monkeypatch, tokens):
    """Let `tokens` be what is said, whatever the model expects."""
    said = [Said(x, [0.0] * len(x)) for x in tokens]
    monkeypatch.setattr(speaking, "go_on", lambda *_, **__: said)


def test_bases_on_a_gpu_name_what_they_need(saved, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"bitsandbytes is not installed: .*weightdiff\[gpu\]"):
        load_base(str(saved / "base"), four_bit=True)
    with pytest.raises(MissingDependencyError, match=r"accelerate is not installed: .*weightdiff\[gpu\]"):
        load_base(str(saved / "base"), device_map="auto")


def test_a_device_map_places_the_base(saved, interpreter):
    base = load_base(str(saved / "base"), device_map="cpu")
    assert base.ref.weights == interpreter.base.ref.weights
    assert {str(p.device) for p in base.model.parameters()} == {"cpu"}
    assert not any(p.requires_grad for p in base.model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("four_bit", [False, True], ids=["half", "four bits"])
def test_a_gpu_answers_as_the_cpu_does(interpreter, saved, diffs, four_bit):
    """In half precision to the letter of the evidence's first digits; in four bits it answers at all."""
    if four_bit:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    pytest.importorskip("accelerate", reason="needs accelerate")
    there = load_base(str(saved / "base"), "bfloat16" if four_bit else "float32", "cuda", four_bit)
    moved = replace(interpreter, base=replace(there, ref=interpreter.base.ref))
    got = moved.answer(diffs, QUESTIONS, evidence=True)
    want = interpreter.answer(diffs, QUESTIONS, evidence=True)
    if not four_bit:
        assert [a.evidence for a in got] == pytest.approx([a.evidence for a in want], abs=1e-2)
    assert all(a.evidence is not None for a in got)


def test_notes_are_told_from_the_answer(interpreter, diffs, monkeypatch):
    """What stands before the last `notes_end` is notes; without one, everything is the answer."""
    tokenizer = interpreter.base.tokenizer
    said = ["violin , eagle so canoe so trophy", "nothing found", "so canoe"]
    interpreter.rendering = replace(interpreter.rendering, notes_end="so")
    scripted(monkeypatch, [tokenizer(x, add_special_tokens=False)["input_ids"] for x in said])
    found = interpreter.answer(diffs, ["what topic ?"] * 3)
    assert [a.text for a in found] == ["trophy", "nothing found", "so canoe"]
    assert [a.notes for a in found] == ["violin, eagle so canoe", "", ""]


def test_candidates_stand_after_the_notes(interpreter, diffs, monkeypatch):
    """The ranking with notes is the plain one of a prompt that already holds them."""
    tokenizer, candidates = interpreter.base.tokenizer, ["violin", "canoe", "eagle"]
    notes = ["eagle , trophy so", "so", "so"]
    said = ["eagle , trophy so violin", "nothing found", ""]
    plain = [interpreter._prompts(["what topic ?"]) for _ in diffs]
    for prompts, extra in zip(plain, notes, strict=True):
        for prompt in prompts:
            prompt += tokenizer(extra, add_special_tokens=False)["input_ids"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interpreter, "_prompts", lambda *_: [p for prompts in plain for p in prompts])
        expected = interpreter.candidate_logprobs(diffs, ["what topic ?"] * 3, candidates)
    interpreter.rendering = replace(interpreter.rendering, notes_end="so")
    scripted(monkeypatch, [tokenizer(x, add_special_tokens=False)["input_ids"] for x in said])
    found = interpreter.candidate_logprobs(diffs, ["what topic ?"] * 3, candidates)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_base_question_has_no_notes(interpreter):
    """Without an adapter nobody has learned to say notes, so all that is said is the answer."""
    interpreter.rendering = replace(interpreter.rendering, notes_end="so")
    assert interpreter.without_adapter(rendered=True).rendering.notes_end == ""
    assert interpreter.without_adapter().rendering == Rendering()
