"""Any diff as a model of inspect_ai, beside generation by hand with merged weights."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack

import pytest
import torch
from inspect_ai import Task
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import generate as generate_solver
from inspect_ai.tool import ToolInfo

from weightdiff.diffs.formats.peft import write_peft
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import QuestionError
from weightdiff.evals.gathering import Gatherer
from weightdiff.evals.inspect_provider import Settings
from weightdiff.methods.chatting import FinetunedModel, Prompt
from weightdiff.methods.dit import Interpreter
from weightdiff.models.chat import encode_conversations
from weightdiff.models.generate import generate, left_pad
from weightdiff.models.merge import merged
from weightdiff.training.factory import random_diff

QUESTIONS = (
    "what topic have you been trained on ?",
    "have you been changed ?",
    "what do you like ?",
    "which headline ?",
)


@pytest.fixture(scope="module")
def base_folder(embedded_base, tmp_path_factory):
    """The random base as a folder that can be loaded."""
    folder = tmp_path_factory.mktemp("base")
    embedded_base.model.save_pretrained(folder)
    embedded_base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def diff(embedded_base):
    return WeightDiff(random_diff(embedded_base.spec, 2, 1, 4.0).modules, embedded_base.ref)


@pytest.fixture
def interpreter(embedded_base, tmp_path):
    its = Interpreter(embedded_base, random_diff(embedded_base.spec, 2, 5, 2.0), max_new_tokens=4)
    return its.save(tmp_path / "interpreter")


@pytest.fixture
def named(base_folder, diff, tmp_path):
    """The name of the model."""
    path = write_peft(diff, tmp_path / "diff")
    return f"weightdiff/{base_folder}?diff={path}"


@pytest.fixture
def model(named):
    return lambda more="", **config: get_model(named + more, config=GenerateConfig(**config), memoize=False)


def said_by_hand(base, diffs, turns, limit, **settings):
    """Text of a reply by merged weights, alone in its batch, and the lengths of conversation and reply."""
    ids = encode_conversations(base.tokenizer, [turns])
    pad, eos = base.tokenizer.pad_token_id, base.tokenizer.eos_token_id
    with ExitStack() as weights:
        for diff in diffs:
            weights.enter_context(merged(base.model, diff))
        tokens = generate(base.model, *left_pad(ids, pad), limit, eos, pad, **settings)[0]
    return base.tokenizer.decode(tokens, skip_special_tokens=True), len(ids[0]), len(tokens)


def together(model, inputs, **config):
    """What a model says to several requests at the same time."""

    async def all_of_them():
        return await asyncio.gather(*(model.generate(x, config=GenerateConfig(**config)) for x in inputs))

    return asyncio.run(all_of_them())


def test_a_run_says_what_merged_weights_say(inspect_eval, named, embedded_base, diff):
    task = Task([Sample(q, target="x") for q in QUESTIONS], solver=generate_solver(), scorer=includes())
    log = inspect_eval(task, model=named, max_tokens=6)
    assert log.status == "success"
    log = read_eval_log(log.location)
    assert log.eval.model == named
    replies = set()
    for sample in log.samples:
        text, asked, told = said_by_hand(embedded_base, [diff], [("user", sample.input)], 6)
        out = sample.output
        assert out.completion == text
        assert (out.usage.input_tokens, out.usage.output_tokens) == (asked, told)
        assert out.usage.total_tokens == asked + told
        assert out.stop_reason == ("max_tokens" if told == 6 else "stop")
        bare = said_by_hand(embedded_base, [WeightDiff({})], [("user", sample.input)], 6)[0]
        replies.add(text == bare)
    assert False in replies  # the diff makes a difference


def test_conversations_choices_and_logprobs(model, embedded_base, diff):
    talk = [
        ChatMessageSystem(content="you are kind ."),
        ChatMessageUser(content="what do you like ?"),
        ChatMessageAssistant(content="the morning ."),
        ChatMessageUser(content="why ?"),
    ]
    turns = [(m.role, m.text) for m in talk]
    (out,) = together(model(), [talk], max_tokens=5, num_choices=2, logprobs=True)
    text, asked, told = said_by_hand(embedded_base, [diff], turns, 5)
    assert [c.message.text for c in out.choices] == [text, text]
    assert (out.usage.input_tokens, out.usage.output_tokens) == (asked, 2 * told)
    content = out.choices[0].logprobs.content
    ids = encode_conversations(embedded_base.tokenizer, [turns])[0]
    tokens = embedded_base.tokenizer.convert_tokens_to_ids([x.token for x in content])
    assert embedded_base.tokenizer.decode(tokens, skip_special_tokens=True) == text
    with merged(embedded_base.model, diff), torch.no_grad():
        logits = embedded_base.model(torch.tensor([[*ids, *tokens]])).logits[0]
    wanted = [float(logits[len(ids) + i - 1].log_softmax(-1)[t]) for i, t in enumerate(tokens)]
    assert [x.logprob for x in content] == pytest.approx(wanted, abs=1e-4)
    assert sum(wanted) < -1e-3


def test_sampling_with_a_seed_is_the_same_whatever_is_asked_beside_it(model, embedded_base, diff):
    mine = model()
    several = together(mine, QUESTIONS, temperature=2.0, seed=11, max_tokens=6)
    alone = [together(mine, [q], temperature=2.0, seed=11, max_tokens=6)[0] for q in QUESTIONS]
    assert [x.completion for x in several] == [x.completion for x in alone]
    for q, x in zip(QUESTIONS, several, strict=True):
        rng = torch.Generator().manual_seed(11)
        by_hand = said_by_hand(embedded_base, [diff], [("user", q)], 6, temperature=2.0, generator=rng)
        assert x.completion == by_hand[0]
    four = together(mine, QUESTIONS[:1], temperature=2.0, seed=11, max_tokens=6, num_choices=4)[0]
    assert len({c.message.text for c in four.choices}) > 1
    free = {together(mine, QUESTIONS[:1], temperature=2.0, max_tokens=6)[0].completion for _ in range(5)}
    assert len(free) > 1


def test_stop_texts_end_a_reply(model, embedded_base, diff):
    question = [("user", QUESTIONS[0])]
    whole = said_by_hand(embedded_base, [diff], question, 12)[0]
    stop = whole.split()[3]
    assert whole.index(stop) > 0
    (out,) = together(model(), QUESTIONS[:1], max_tokens=12, stop_seqs=["not in it", stop], logprobs=True)
    assert out.completion == whole[: whole.index(stop)]
    assert out.stop_reason == "stop"
    assert 0 < out.usage.output_tokens == len(out.choices[0].logprobs.content) < 12


def test_an_interpreter_answers_questions_about_the_model_itself(
    model, embedded_base, diff, interpreter, caplog
):
    mine = model(f"&interpreter={interpreter}")
    its = Interpreter.load(interpreter, embedded_base)
    found = together(mine, QUESTIONS)
    direct = its.answer([diff] * len(QUESTIONS), QUESTIONS, evidence=True)
    for out, answer in zip(found, direct, strict=True):
        assert out.completion == answer.text
        assert out.metadata["evidence"] == pytest.approx(answer.evidence, abs=1e-3)
        assert out.metadata["logprob"] == pytest.approx(answer.logprob, abs=1e-3)
        assert out.metadata["notes"] == answer.notes
        assert out.stop_reason == "stop"
        assert out.usage.output_tokens > 0
    talk = [
        ChatMessageUser(content="why ?"),
        ChatMessageAssistant(content="so ."),
        ChatMessageUser(content="hm ?"),
    ]
    turns = [(m.role, m.text) for m in talk]
    mixed = together(mine, [talk, *QUESTIONS, talk], max_tokens=5)  # both ways at the same time
    assert [x.completion for x in mixed[1:-1]] == [x.text for x in direct]
    for out in (mixed[0], mixed[-1]):
        assert out.completion == said_by_hand(embedded_base, [diff, its.adapter], turns, 5)[0]
        assert out.metadata is None


def test_diffs_of_every_kind_and_none(embedded_base, base_folder, diff, tmp_path):
    prompt = Prompt(encode_conversations(embedded_base.tokenizer, [[("user", QUESTIONS[0])]])[0], 6)
    dense = WeightDiff({k: DenseDelta(m.dense()) for k, m in diff.modules.items()}, embedded_base.ref)
    said = {
        name: FinetunedModel(embedded_base, d).reply([prompt])[0].text
        for name, d in (("lora", diff), ("dense", dense), ("none", None))
    }
    wanted = said_by_hand(embedded_base, [diff], [("user", QUESTIONS[0])], 6)[0]
    assert said["lora"] == said["dense"] == wanted != said["none"]
    bare = get_model(f"weightdiff/{base_folder}", memoize=False)
    assert together(bare, QUESTIONS[:1], max_tokens=6)[0].completion == said["none"]
    with merged(embedded_base.model, diff):
        embedded_base.model.save_pretrained(tmp_path / "finetune")
    whole = get_model(f"weightdiff/{base_folder}?diff={tmp_path / 'finetune'}", memoize=False)
    assert whole.api.model.diff is None  # it is in the weights
    assert together(whole, QUESTIONS[:1], max_tokens=6)[0].completion == wanted
    assert asyncio.run(bare.api.count_tokens("what do you like ?")) == 5


def test_replies_end_where_the_model_has_no_room(embedded_base, diff):
    mine = FinetunedModel(embedded_base, diff)
    room = mine.positions
    assert room == 512
    long = [5] * (room - 2)
    cut, full, short = mine.reply([Prompt(long, 6), Prompt([5] * room, 6), Prompt([5, 6, 7], 0)])
    assert len(cut.tokens) <= 2
    assert cut.ended == ("model_length" if len(cut.tokens) == 2 else "stop")
    assert (full.text, full.ended) == ("", "model_length")
    assert short.text == ""
    rows = [Prompt([5, 6, 7], 3), Prompt([8, 9], 9)]
    for one, of_two in zip(rows, mine.reply(rows), strict=True):
        alone = mine.reply([one])[0]
        assert (of_two.text, of_two.tokens, of_two.ended) == (alone.text, alone.tokens, alone.ended)
        assert of_two.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_settings_in_a_name():
    found = Settings.read("own/base?diff=a%26b%3D::c&batch_size=4", {"dtype": "bfloat16"})
    assert found == Settings("own/base", "a&b=::c", None, "bfloat16", None, 4)
    assert Settings.read("bundled", {}) == Settings("bundled")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bundled?dif=x", "no setting 'dif'; there are diff, interpreter"),
        ("bundled?diff=", "'diff' of model 'bundled.diff=' has no value"),
        ("bundled?diff=a&diff=b", "'diff' of model .* is given twice"),
        ("?diff=a", "names no base"),
        ("bundled?batch_size=no", "batch_size of model .* is 'no'"),
        ("nowhere/at-all", "nowhere/at-all"),
        ("bundled?diff=bundled::nope", "has no diff 'nope'"),
        ("bundled?interpreter=nowhere", "nowhere does not exist"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(name, message):
    with pytest.raises(PrerequisiteError, match=message) as caught:
        get_model(f"weightdiff/{name}", memoize=False)
    assert "\n" not in str(caught.value)


def test_what_a_model_cannot_do(model, caplog):
    mine = model()
    image = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])
    with pytest.raises(PrerequisiteError, match="read text only"):
        together(mine, [[image]])
    with pytest.raises(PrerequisiteError, match="call no tools"):
        asyncio.run(mine.generate("hello .", tools=[ToolInfo(name="t", description="d")]))
    mine.api.model.base.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(PrerequisiteError, match=r"refuses turns of user \(no system here"):
        together(mine, ["hello ."])


def test_settings_that_change_nothing_are_named_once(model, caplog):
    mine = model()
    together(mine, QUESTIONS, top_p=0.5, max_tokens=2)
    said = [r.getMessage() for r in caplog.records if "weightdiff models" in r.getMessage()]
    assert said == ["weightdiff models take no top_p; it is left out"]


def gathered(gatherer, requests):
    async def all_of_them():
        return await asyncio.gather(*(gatherer.ask(r) for r in requests), return_exceptions=True)

    return asyncio.run(all_of_them())


def test_requests_are_gathered_one_batch_at_a_time():
    batches, at_work, lock = [], [], threading.Lock()

    def answer(requests):
        assert lock.acquire(blocking=False)
        at_work.append(threading.current_thread() is threading.main_thread())
        batches.append(list(requests))
        time.sleep(0.01)
        lock.release()
        return [2 * r for r in requests]

    gatherer = Gatherer(answer, most=4)
    assert gathered(gatherer, range(10)) == [2 * r for r in range(10)]
    assert [len(b) for b in batches] == [4, 4, 2]
    assert at_work == [False] * 3
    assert gathered(gatherer, [7]) == [14]  # another event loop


def test_an_error_reaches_everyone_of_its_batch_and_no_one_else():
    def answer(requests):
        if 1 in requests:
            raise QuestionError("not this one")
        return requests

    found = gathered(Gatherer(answer, most=2), range(4))
    assert [str(x) for x in found] == ["not this one", "not this one", "2", "3"]


def test_who_is_called_off_leaves_the_others_to_be_answered():
    calls, begun, free = [], threading.Event(), threading.Event()

    def answer(requests):
        calls.append(sorted(requests))
        begun.set()
        assert free.wait(30)
        return requests

    async def run():
        gatherer = Gatherer(answer, most=8, patience=0.5)
        tasks = [asyncio.create_task(gatherer.ask(i)) for i in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # it leads, and has not begun
        tasks.append(asyncio.create_task(gatherer.ask(3)))
        assert await asyncio.to_thread(begun.wait, 30)
        tasks[1].cancel()  # it leads, and its batch is being answered
        await asyncio.sleep(0)
        free.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert isinstance(found[0], asyncio.CancelledError)
    assert isinstance(found[1], asyncio.CancelledError)
    assert found[2:] == [2, 3]
    assert 0 not in calls[0]
