"""How alike answer and truth are to a text encoder: the cosine of their embeddings, best over the truths.

Scorers that need no model are in `scorers`; one that grades by a language model is in `judge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightdiff.errors import FormatError, QuestionError
from weightdiff.evals.scorers import Score

LONGEST = 512
"""Tokens of a text that are read, or fewer where the encoder takes fewer."""
BLANK = 0.0
"""Value of an answer without words: it points nowhere."""


class EmbeddingSimilarity:
    """Scores answers by the cosine between their embedding and the nearest truth's, from -1 to 1.

    The embedding of a text is the mean of its tokens' last hidden states, scaled to length one. Folders of
    sentence-transformers are read as the encoders that they hold, with this pooling whatever they name.
    """

    def __init__(
        self, encoder: str, device: str | None = None, batch: int = 64, name: str = "embedding"
    ) -> None:
        """Load the encoder in fp32.

        Args:
            encoder: folder or Hub name that transformers' AutoModel and AutoTokenizer can load.
            device: where it computes; None: a GPU where there is one, else the CPU.
            batch: texts that are encoded at once.
            name: of its scores.

        Raises:
            FormatError: no encoder could be loaded, it lacks weights, or its tokenizer does not fit
                or cannot pad.
            ValueError: `batch` is less than one.
        """
        if batch < 1:
            raise ValueError(f"a batch needs one text or more, not {batch}")
        self.encoder = encoder
        self.batch = batch
        self.name = name
        self.bounds = (-1.0, 1.0)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model, self._tokenizer = _load(encoder)
        self._model.to(self.device)
        room = getattr(self._model.config, "max_position_embeddings", None) or LONGEST
        self._longest = min(self._tokenizer.model_max_length, room, LONGEST)

    def score(
        self, questions: Sequence[str], answers: Sequence[str], truths: Sequence[Sequence[str]]
    ) -> list[Score]:
        """One score an answer; 0 for a blank one, None where an embedding is not finite.

        Args:
            questions: not read; as many as answers.
            answers: any texts.
            truths: of each answer: the reference, then other texts that say the same.

        Raises:
            QuestionError: there are not as many answers or truths as questions, or an answer has no truths.
        """
        if not len(questions) == len(answers) == len(truths):
            raise QuestionError(
                f"{len(questions)} questions, {len(answers)} answers and {len(truths)} lists of truths: an"
                " encoder needs one of each"
            )
        if bare := [q for q, own in zip(questions, truths, strict=True) if not own]:
            raise QuestionError(
                f"there is no truth to hold an answer to {bare[0]!r} against; give one or more"
            )
        texts = list(dict.fromkeys(t for a, own in zip(answers, truths, strict=True) for t in (a, *own)))
        place = {text: k for k, text in enumerate(texts)}
        found = self.embed(texts)
        return [
            self._score(found[place[a]], found[[place[t] for t in own]])
            if a.strip()
            else Score(BLANK, self.name)
            for a, own in zip(answers, truths, strict=True)
        ]

    def _score(self, answer: Tensor, truths: Tensor) -> Score:
        """Score of one answer [features] against its truths [truths, features]."""
        cosines = truths @ answer
        if not bool(torch.isfinite(cosines).all()):
            return Score(None, self.name, f"{self.encoder} gives an embedding that is not finite")
        return Score(float(cosines.max().clamp(-1.0, 1.0)), self.name)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of length one, fp32 [texts, features], on the CPU; zero for a text without tokens."""
        width = int(self._model.config.hidden_size)
        out = torch.zeros(len(texts), width)
        order = sorted(range(len(texts)), key=lambda k: (len(texts[k]), k))  # alike lengths, little padding
        for start in range(0, len(order), self.batch):
            at = order[start : start + self.batch]
            rows = self._tokenizer(
                [texts[k] for k in at],
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            ).to(self.device)
            if rows["input_ids"].shape[1] == 0:
                continue
            hidden = self._model(
                input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]
            ).last_hidden_state.float()
            mask = rows["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
            out[at] = torch.nn.functional.normalize(mean, dim=-1).cpu()
        return out


def _load(encoder: str) -> tuple[Any, Any]:
    """Model and tokenizer, frozen and in eval mode."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
        model, loaded = AutoModel.from_pretrained(encoder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError) as e:
        why = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise FormatError(
            f"{encoder}: no text encoder could be loaded ({why}); give a folder or Hub name of one with its"
            " tokenizer, such as a sentence encoder"
        ) from e
    # a pooler is not used, and many encoders come without one
    lacks = sorted(n for n in loaded["missing_keys"] if "pooler" not in n)
    if lacks:
        raise FormatError(
            f"{encoder}: its files lack {len(lacks)} weights of the encoder, such as {lacks[0]}, which would"
            " be random; give a whole text encoder"
        )
    # transformers makes an empty tokenizer where files are missing: all words would be the unknown one
    ids, rows = len(tokenizer), model.get_input_embeddings().num_embeddings
    if not len(tokenizer.all_special_tokens) < ids <= rows:
        raise FormatError(
            f"{encoder}: its tokenizer has {ids} tokens, {len(tokenizer.all_special_tokens)} of them special,"
            f" and the encoder takes {rows}: they do not fit; give a folder with both, as they were saved"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise FormatError(f"{encoder}: its tokenizer has no token to pad with; give another encoder")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # positions then begin at the text
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return model.eval().requires_grad_(False), tokenizer
