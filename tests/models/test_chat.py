"""How questions become prompts on bases of every kind: templates, thinking switches, none at all."""

from __future__ import annotations

import copy

import pytest
import torch

from weightdiff.errors import QuestionError
from weightdiff.models.chat import (
    MAX_QUESTION_CHARS,
    chat_format,
    encode_answers,
    encode_conversations,
    encode_prompts,
    encode_samples,
)
from weightdiff.models.generate import generate, left_pad

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
GEMMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SYSTEM = "<<SYS>>be kind<</SYS>>{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return copy.deepcopy(tiny_tokenizer)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (
            THINKING,
            "<|im_start|>user\nwhat changed?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        (GEMMA_LIKE, "<bos><start_of_turn>user\nwhat changed?<end_of_turn>\n<start_of_turn>model\n"),
        (SYSTEM, "<<SYS>>be kind<</SYS>>[INST] what changed? [/INST]"),
        (None, "<bos>Question: what changed?\nAnswer:"),
    ],
    ids=["thinking", "gemma", "system", "none"],
)
def test_a_prompt_is_what_the_template_makes(tokenizer, template, prompt):
    tokenizer.chat_template = template
    assert chat_format(tokenizer).prompt("what changed?") == prompt
    if template:
        assert prompt == tokenizer.apply_chat_template(
            [{"role": "user", "content": "what changed?"}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    (ids,) = encode_prompts(tokenizer, ["what changed?"])
    assert ids == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    (row,) = encode_samples(tokenizer, [("what changed?", "a topic")])
    assert row.ids[: row.start] == ids
    assert row.ids[row.start :] == encode_answers(tokenizer, ["a topic"])[0]


def test_a_new_template_is_seen(tokenizer):
    tokenizer.chat_template = SYSTEM
    assert chat_format(tokenizer).prompt("x").startswith("<<SYS>>")
    tokenizer.chat_template = None
    assert chat_format(tokenizer).prompt("x").startswith("<bos>Question")


def test_templates_that_hide_the_question_are_refused(tokenizer):
    tokenizer.chat_template = "hello{% for m in messages %}{% endfor %}"
    with pytest.raises(QuestionError, match="does not show the user's text"):
        chat_format(tokenizer)


def test_questions_that_cannot_be_encoded(tokenizer):
    with pytest.raises(QuestionError, match="a question is empty"):
        encode_prompts(tokenizer, ["fine", " \n"])
    with pytest.raises(QuestionError, match=f"has {MAX_QUESTION_CHARS + 1} characters; shorten it"):
        encode_prompts(tokenizer, ["x" * (MAX_QUESTION_CHARS + 1)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_own_side_of_padding_does_not_matter(tokenizer, any_tiny_model, side):
    """Rows are padded here, on the left, whatever the tokenizer would do."""
    tokenizer.padding_side = side
    prompts = encode_prompts(tokenizer, ["a", "a much longer question than that"])
    ids, mask = left_pad(prompts, tokenizer.pad_token_id)
    together = generate(any_tiny_model, ids, mask, 5, None, tokenizer.pad_token_id)
    alone = [generate(any_tiny_model, *left_pad([p], 0), 5, None, tokenizer.pad_token_id)[0] for p in prompts]
    assert together == alone
    assert int(mask[0, 0]) == 0
    assert torch.equal(ids[0, -len(prompts[0]) :], torch.tensor(prompts[0]))


@pytest.mark.parametrize("template", [THINKING, GEMMA_LIKE, None], ids=["thinking", "gemma", "none"])
def test_a_conversation_of_one_question_is_its_prompt(tokenizer, template):
    tokenizer.chat_template = template
    asked = ["what changed?", "why"]
    found = encode_conversations(tokenizer, [[("user", q)] for q in asked])
    assert found == encode_prompts(tokenizer, asked)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            GEMMA_LIKE,
            "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
            "<start_of_turn>user\nso?<end_of_turn>\n<start_of_turn>model\n",
        ),
        (None, "<bos>Question: hi\nAnswer: yes\nQuestion: so?\nAnswer:"),
    ],
    ids=["gemma", "none"],
)
def test_turns_follow_each_other_and_the_last_can_be_gone_on_with(tokenizer, template, text):
    tokenizer.chat_template = template
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "so?")]
    (whole,) = encode_conversations(tokenizer, [turns])
    assert tokenizer.decode(whole) == text
    (begun,) = encode_conversations(tokenizer, [[*turns, ("assistant", "well,")]])
    assert tokenizer.decode(begun) == f"{text}{'' if template else ' '}well,"


def test_conversations_that_cannot_be_shown(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(QuestionError, match=r"refuses turns of system, user \(no system turns\)"):
        encode_conversations(tokenizer, [[("system", "be kind"), ("user", "hi")]])
    with pytest.raises(QuestionError, match="has no turns"):
        encode_conversations(tokenizer, [[]])
    tokenizer.chat_template = None
    (ids,) = encode_conversations(tokenizer, [[("system", "be kind"), ("user", "hi")]])
    assert tokenizer.decode(ids) == "<bos>be kind\nQuestion: hi\nAnswer:"
