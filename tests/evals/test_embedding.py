"""Embedding similarity against a loop by hand over a tiny BERT that is made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weightdiff.errors import FormatError, QuestionError
from weightdiff.evals.embedding import EmbeddingSimilarity
from weightdiff.evals.scorers import BatchScorer, Score

WORDS = ("the", "fox", "hare", "sees", "paints", "comet", "in", "oslo", "rome", "baker")
TEXTS = ["fox", "the fox sees the hare in oslo", "baker paints comet in rome", "zebra", "rome " * 40]


def build(folder: Path, with_tokenizer: bool = True) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {w: i for i, w in enumerate((*special, *WORDS))}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    torch.manual_seed(3)
    BertModel(config).eval().save_pretrained(folder)
    if with_tokenizer:
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        core.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("bert")))


def by_hand(folder: str, text: str) -> list[float]:
    """One text at a time, no padding, plain sums."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    words = [4 + WORDS.index(w) if w in WORDS else 1 for w in text.split()]
    ids = [2, *words[:30], 3]
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().tolist()
    mean = [sum(column) / len(ids) for column in zip(*hidden, strict=True)]
    length = sum(x * x for x in mean) ** 0.5
    return [x / length for x in mean]


def test_embeddings_are_those_of_a_loop_by_hand(encoder: str) -> None:
    found = EmbeddingSimilarity(encoder, device="cpu").embed(TEXTS)
    hand = torch.tensor([by_hand(encoder, t) for t in TEXTS])
    torch.testing.assert_close(found, hand, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_and_padding_change_nothing(encoder: str, batch: int) -> None:
    whole = EmbeddingSimilarity(encoder, device="cpu").embed(TEXTS)
    torch.testing.assert_close(
        EmbeddingSimilarity(encoder, device="cpu", batch=batch).embed(TEXTS), whole, atol=1e-6, rtol=0
    )


def test_the_score_is_the_best_cosine_over_the_truths(encoder: str) -> None:
    scorer: BatchScorer = EmbeddingSimilarity(encoder, device="cpu")
    truths = [["hare", "fox in rome"], ["fox"], ["baker"]]
    answers = ["fox", "fox", "the comet"]
    found = scorer.score(["q"] * 3, answers, truths)
    hand = [
        max(sum(x * y for x, y in zip(by_hand(encoder, a), by_hand(encoder, t), strict=True)) for t in own)
        for a, own in zip(answers, truths, strict=True)
    ]
    assert [s.value for s in found] == pytest.approx(hand, abs=1e-6)
    assert found[1].value == pytest.approx(1.0, abs=1e-6)
    assert found[1].value <= 1.0
    assert min(hand) < 0.99
    assert {(s.scorer, s.note, s.variance) for s in found} == {("embedding", "", None)}
    assert (scorer.name, scorer.bounds) == ("embedding", (-1.0, 1.0))
    assert found == EmbeddingSimilarity(encoder, device="cpu").score(["q"] * 3, answers, truths)


def test_a_blank_answer_is_worth_nothing(encoder: str) -> None:
    found = EmbeddingSimilarity(encoder, device="cpu").score(["q"] * 2, ["", " \n"], [["fox"]] * 2)
    assert found == [Score(0.0, "embedding")] * 2


def test_what_is_not_finite_is_unscored(encoder: str) -> None:
    scorer = EmbeddingSimilarity(encoder, device="cpu")
    scorer._model.embeddings.word_embeddings.weight.data[4 + WORDS.index("fox")] = float("nan")
    found = scorer.score(["q"] * 3, ["fox", "hare", "hare"], [["hare"], ["fox", "hare"], ["hare"]])
    assert [s.value is None for s in found] == [True, True, False]
    assert found[0].note == f"{encoder} gives an embedding that is not finite"
    assert found[2].note == ""


def test_decoders_and_encoder_decoders_have_embeddings_too(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    tiny_tokenizer.pad_token = None
    tiny_tokenizer.padding_side = "left"
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    scorer = EmbeddingSimilarity(str(tmp_path / "gpt2"), device="cpu")
    both = scorer.embed(["fox", "the fox sees the hare"])
    torch.testing.assert_close(both[:1], scorer.embed(["fox"]), atol=1e-6, rtol=0)
    assert scorer.embed([""]).tolist() == [[0.0] * 32]

    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=260, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tiny_tokenizer.save_pretrained(tmp_path / "t5")
    assert EmbeddingSimilarity(str(tmp_path / "t5"), device="cpu").embed(["fox", "a hare"]).shape == (2, 16)


def test_what_cannot_be_loaded_is_one_clear_line(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    with pytest.raises(
        FormatError, match=r"nowhere: no text encoder could be loaded \(.+\); give a folder or Hub"
    ):
        EmbeddingSimilarity(str(tmp_path / "nowhere"))
    bare = build(tmp_path / "bare", with_tokenizer=False)
    with pytest.raises(
        FormatError, match="bare: its tokenizer has 5 tokens, 5 of them special, and the encoder"
    ):
        EmbeddingSimilarity(str(bare))

    from safetensors.torch import load_file, save_file

    part = build(tmp_path / "part")
    tensors = load_file(part / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if "encoder.layer.1" not in k and "pooler" not in k}
    save_file(kept, part / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        FormatError, match=r"lack 16 weights of the encoder, such as encoder\.layer\.1\S+, which"
    ):
        EmbeddingSimilarity(str(part))

    tiny_tokenizer.save_pretrained(bare)
    with pytest.raises(FormatError, match="has 260 tokens, 3 of them special, and the encoder takes 14"):
        EmbeddingSimilarity(str(bare))
    tiny_model("gpt2").save_pretrained(tmp_path / "mute")
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token = None
    tiny_tokenizer.save_pretrained(tmp_path / "mute")
    with pytest.raises(
        FormatError, match="mute: its tokenizer has no token to pad with; give another encoder"
    ):
        EmbeddingSimilarity(str(tmp_path / "mute"))


def test_what_cannot_be_scored_is_refused(encoder: str) -> None:
    scorer = EmbeddingSimilarity(encoder, device="cpu")
    with pytest.raises(QuestionError, match="1 questions, 2 answers and 1 lists of truths"):
        scorer.score(["q"], ["a", "b"], [["t"]])
    with pytest.raises(QuestionError, match="no truth to hold an answer to 'q' against"):
        scorer.score(["q"], ["a"], [[]])
    with pytest.raises(ValueError, match="a batch needs one text or more, not 0"):
        EmbeddingSimilarity(encoder, batch=0)
    assert scorer.score([], [], []) == []
