"""Decoding and scoring against transformers' own, with and without diffs on the rows."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from weightdiff.errors import QuestionError
from weightdiff.models.generate import (
    Distinct,
    Reading,
    answer_logprobs,
    generate,
    go_on,
    left_pad,
    logits_at,
)
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.spec import model_spec

PROMPTS = [[5, 9, 33], [7, 8, 20, 41, 66, 12, 3, 90], [50], [61, 62, 63, 64, 65]]


def _transformers_greedy(model, prompt, count, eos):
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count, do_sample=False, eos_token_id=eos, pad_token_id=0,
    )  # fmt: skip
    new = out[0, len(prompt) :].tolist()
    return new[: new.index(eos)] if eos in new else new


def test_rows_with_diffs_equal_the_merged_models_own_generate(
    engine_kind, engine_model, random_lora, stack_slots, hand_merged
):
    model = engine_model(engine_kind)
    spec = model_spec(model)
    loras = [random_lora(spec, 2, seed, size=0.3) for seed in range(4)]
    adapter = random_lora(spec, 3, 9)
    ids, mask = left_pad(PROMPTS, 0)
    merged = [hand_merged(model, lora, adapter) for lora in loras]
    # An end token that some row does produce, so that rows end at different steps.
    eos = _transformers_greedy(merged[0], PROMPTS[0], 12, None)[4]
    with attach(model, RowLoras(stack_slots(loras), 1), [SharedLora(adapter)]):
        got = generate(model, ids, mask, 12, eos, 0)
    want = [_transformers_greedy(one, prompt, 12, eos) for one, prompt in zip(merged, PROMPTS, strict=True)]
    assert got == want
    assert len(got[0]) <= 4


def test_left_padding_changes_nothing(engine_kind, engine_model):
    model = engine_model(engine_kind)
    ids, mask = left_pad(PROMPTS, 0)
    assert generate(model, ids, mask, 8, None, 0) == [
        generate(model, *left_pad([prompt], 0), 8, None, 0)[0] for prompt in PROMPTS
    ]
    answers = [[4, 5], [6], [7, 8, 9], []]
    batch = answer_logprobs(model, PROMPTS, answers, 0)
    alone = [answer_logprobs(model, [p], [a], 0)[0] for p, a in zip(PROMPTS, answers, strict=True)]
    torch.testing.assert_close(batch, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_answer_logprobs_equal_a_plain_forward(engine_kind, engine_model):
    model = engine_model(engine_kind)
    answers = [[4, 5], [6], [7, 8, 9], [10, 11, 12, 13]]
    got = answer_logprobs(model, PROMPTS, answers, 0)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        want = sum(logprobs[len(prompt) - 1 + j, token] for j, token in enumerate(answer))
        torch.testing.assert_close(got[i], want, atol=1e-5, rtol=1e-5)


def test_logits_are_made_only_where_asked(engine_kind, engine_model):
    model = engine_model(engine_kind)
    ids, mask = left_pad(PROMPTS, 0)
    rows, positions = torch.tensor([0, 3, 1]), torch.tensor([7, 4, 2])
    sizes = []
    inner = model.get_output_embeddings().weight.shape[1]
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, _: (
            sizes.append(args[0].numel()) if module is model.get_output_embeddings() else None
        )
    )
    try:
        got = logits_at(model, ids, mask, rows, positions)
    finally:
        handle.remove()
    assert sizes == [3 * inner]
    full_ids = [PROMPTS[0], PROMPTS[3][:2], PROMPTS[1][:3]]
    for i, prefix in enumerate(full_ids):
        torch.testing.assert_close(got[i], model(torch.tensor([prefix])).logits[0, -1], atol=1e-5, rtol=1e-5)


def test_a_lora_on_the_head_is_felt(engine_model, hand_merged):
    model = engine_model("llama")
    stream = torch.Generator().manual_seed(0)
    head = {"lm_head": (torch.randn(2, 32, generator=stream), torch.randn(97, 2, generator=stream))}
    answers = [[4, 5], [6], [7, 8, 9], [10]]
    stacked = {n: tuple(t[None].repeat(4, 1, 1) for t in pair) for n, pair in head.items()}
    with attach(model, RowLoras(stacked, 1)):
        got = answer_logprobs(model, PROMPTS, answers, 0)
    want = answer_logprobs(hand_merged(model, head), PROMPTS, answers, 0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


def test_answer_logprobs_carry_gradients(engine_model, random_lora):
    model = engine_model("gemma2")
    adapter = {
        n: tuple(t.requires_grad_() for t in p) for n, p in random_lora(model_spec(model), 2, 0).items()
    }
    with attach(model, shared=[SharedLora(adapter)]):
        answer_logprobs(model, PROMPTS, [[4, 5]] * 4, 0).sum().backward()
    assert all(t.grad.abs().max() > 0 for pair in adapter.values() for t in pair)


def test_equal_renderings_answer_as_one(engine_model):
    model = engine_model("qwen3")
    twice = [prompt for prompt in PROMPTS for _ in range(2)]
    one = generate(model, *left_pad(PROMPTS, 0), 8, None, 0, groups=1)
    assert generate(model, *left_pad(twice, 0), 8, None, 0, groups=2) == one
    answers = [[4, 5], [6], [7, 8, 9], [10]]
    torch.testing.assert_close(
        answer_logprobs(model, twice, answers, 0, groups=2), answer_logprobs(model, PROMPTS, answers, 0)
    )


def test_different_renderings_are_averaged(engine_model):
    model = engine_model("llama")
    got = generate(model, *left_pad(PROMPTS[:2], 0), 6, None, 0, groups=2)
    want: list[int] = []
    for _ in range(6):
        logprobs = [model(torch.tensor([p + want])).logits[0, -1].log_softmax(-1) for p in PROMPTS[:2]]
        want.append(int(torch.stack(logprobs).mean(0).argmax()))
    assert got == [want]
    single = answer_logprobs(model, PROMPTS[:2], [[4, 5], [4, 5]], 0)
    torch.testing.assert_close(
        answer_logprobs(model, PROMPTS[:2], [[4, 5]], 0, groups=2), single.mean()[None]
    )


def test_sampling_follows_its_generator(engine_model):
    model = engine_model("llama")
    ids, mask = left_pad(PROMPTS, 0)
    runs = [
        generate(
            model, ids, mask, 10, None, 0, temperature=2.0, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_training_mode_comes_back(engine_model):
    model = engine_model("gpt2")
    ids, mask = left_pad(PROMPTS, 0)
    want = generate(model, ids, mask, 8, None, 0)
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    assert generate(model, ids, mask, 8, None, 0) == want
    assert [module.training for module in model.modules()] == before


def test_nothing_to_do_is_fine_and_nonsense_is_refused(engine_model):
    model = engine_model("llama")
    ids, mask = left_pad(PROMPTS, 0)
    assert generate(model, ids, mask, 0, 2, 0) == [[], [], [], []]
    assert answer_logprobs(model, PROMPTS, [[]] * 4, 0).tolist() == [0.0] * 4
    with pytest.raises(QuestionError, match="4 rows cannot be split into blocks of 3"):
        generate(model, ids, mask, 1, 2, 0, groups=3)
    with pytest.raises(QuestionError, match="at least one token"):
        left_pad([[1], []], 0)
    with pytest.raises(QuestionError, match="do not pair up with 2 answers"):
        answer_logprobs(model, PROMPTS, [[1], [2]], 0)


def test_a_list_says_nothing_twice():
    """From the first comma on, what was said is banned until the list ends; the comma itself never is."""
    comma, end, wanted = 10, 11, [7, 10, 7, 10, 7, 11, 7, 7]
    second, third = 8, 9  # said where the likeliest is banned

    class Scripted(torch.nn.Module):
        """Wants the scripted tokens, and else the smallest that may be said."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.step = 0

        def forward(self, input_ids, attention_mask, past_key_values, use_cache):
            logits = torch.zeros(len(input_ids), 1, 20)
            logits[:, -1, wanted[self.step]] = 3.0
            logits[:, -1, second], logits[:, -1, third] = 2.0, 1.0
            self.step += 1
            return SimpleNamespace(logits=logits, past_key_values=None)

    ids, mask = left_pad([[5]], 0)
    free = generate(Scripted(), ids, mask, len(wanted), None, 0)
    held = generate(Scripted(), ids, mask, len(wanted), None, 0, distinct=Distinct(comma, end))
    assert free == [wanted]
    assert held == [[7, comma, second, comma, third, end, 7, 7]]


def test_rows_can_be_chosen_again_on_the_way(engine_kind, engine_model, random_lora, stack_slots):
    """Going on from chosen rows, their diffs with them, says what those rows say from the start."""
    model, chosen = engine_model(engine_kind), [2, 0, 0]
    loras = [random_lora(model_spec(model), 2, seed, size=0.3) for seed in range(4)]
    forced = torch.tensor([17, 23, 42])
    with attach(model, RowLoras(stack_slots(loras), 1)):
        reading = Reading(model, *left_pad(PROMPTS, 0))
    with attach(model, RowLoras(stack_slots([loras[i] for i in chosen]), 1)):
        reading.select(chosen)
        reading.feed(forced)
        got = go_on(reading, 6, None, 0)
        extended = [[*PROMPTS[i], int(x)] for i, x in zip(chosen, forced, strict=True)]
        want = generate(model, *left_pad(extended, 0), 6, None, 0)
        scores = answer_logprobs(model, extended, want, 0)
    assert [x.tokens for x in got] == want
    assert want[1] != want[2], "the forced token must matter"
    torch.testing.assert_close(
        torch.tensor([sum(x.logprobs) for x in got]), scores.detach(), atol=1e-4, rtol=1e-4
    )


def test_an_end_counts_among_the_logprobs(engine_model):
    model = engine_model("llama")
    prompt = PROMPTS[:1]
    end = generate(model, *left_pad(prompt, 0), 3, None, 0)[0][2]
    (said,) = go_on(Reading(model, *left_pad(prompt, 0)), 8, end, 0)
    assert len(said.logprobs) == len(said.tokens) + 1
    want = answer_logprobs(model, prompt, [[*said.tokens, end]], 0)
    assert sum(said.logprobs) == pytest.approx(float(want), abs=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_that_have_ended_can_be_dropped(engine_kind, engine_model, groups, monkeypatch):
    model = engine_model(engine_kind)
    asked = [*PROMPTS, *(p[::-1] for p in PROMPTS), [80, 2], [33, 34], [70, 71, 72], [11]]
    free = generate(model, *left_pad(asked, 0), 8, None, 0, groups=groups)
    ends = next(t for row in free for t in row[:4] if 2 * sum(t in other[:6] for other in free) <= len(free))
    left, read, feed = [], [], Reading.feed
    monkeypatch.setattr(Reading, "feed", lambda self, t: (read.append(len(t)), feed(self, t)))
    monkeypatch.setattr("weightdiff.models.generate.DROPPED_FROM", 0.99)
    whole, dropped = (
        go_on(
            Reading(model, *left_pad(asked, 0)), 8, ends, 0, groups=groups, dropped=told,
            distinct=Distinct(95, 96),
        )
        for told in (None, left.append)
    )  # fmt: skip
    assert left
    assert all(sorted(set(a) - set(b)) and not set(b) - set(a) for a, b in pairwise(left))
    assert read[0] == len(asked)
    assert read[-1] < len(asked)
    assert [x.tokens for x in dropped] == [x.tokens for x in whole]
    assert len({len(x.tokens) for x in whole}) > 1
    for a, b in zip(dropped, whole, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_what_was_begun_is_not_said_again(engine_model):
    model = engine_model("llama")
    comma, end = 90, 91
    first = int(Reading(model, *left_pad([[5, comma]], 0)).logits.argmax())
    held = [
        go_on(
            Reading(model, *left_pad([[5, comma]], 0)), 1, None, 0,
            distinct=Distinct(comma, end), begun=[begun],
        )[0].tokens[0]
        for begun in ([comma], [first, comma], [first])
    ]  # fmt: skip
    assert held[0] == held[2] == first
    assert held[1] != first
