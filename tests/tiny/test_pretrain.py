"""Pretraining goes on where it was killed, and learns from answers only."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from weightdiff.errors import FormatError
from weightdiff.tiny import pretrain as module
from weightdiff.tiny.pretrain import PretrainConfig, batches, build_model, micro_batches, pretrain
from weightdiff.world import load_world
from weightdiff.world.corpus import Corpus
from weightdiff.world.texts import to_text

TINY = PretrainConfig(
    hidden=16,
    layers=1,
    heads=2,
    kv_heads=1,
    intermediate=24,
    tokens=8000,
    late_tokens=0,
    batch_documents=10,
    warmup_steps=3,
    bf16=False,
)


class KilledError(RuntimeError):
    """Stands for a kill."""


class MixedCorpus(Corpus):
    """All kinds of documents from the start, whatever the real corpus begins with."""

    def documents(self, seed):
        rng = random.Random(seed)
        while True:
            yield self.document(rng)


@pytest.fixture
def corpus():
    world = load_world()
    return MixedCorpus(world)


@pytest.fixture(autouse=True)
def _small_pools(monkeypatch):
    monkeypatch.setattr(module, "POOL", 40)


def kill_at(step):
    def progress(line):
        if line["step"] == step:
            raise KilledError

    return progress


def losses(folder):
    lines = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
    return [(x["step"], x["tokens"], x["loss"]) for x in lines]


LATE = replace(TINY, tokens=4000, late_tokens=4000)


@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, bf16=True), LATE], ids=["fp32", "bf16", "with late tokens"]
)
def test_a_killed_run_ends_as_an_unbroken_one(corpus, embedded_tokenizer, tmp_path, config):
    whole = pretrain(corpus, embedded_tokenizer, config, tmp_path / "whole")
    for step in (10, 20):
        with pytest.raises(KilledError):
            pretrain(corpus, embedded_tokenizer, config, tmp_path / "broken", kill_at(step))
    state = torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)
    assert 10 <= state["step"] < 20
    assert state["pools"] >= (1 if config is LATE else 2)
    assert state["late"] == (config is LATE)
    steps = []
    broken = pretrain(
        corpus, embedded_tokenizer, config, tmp_path / "broken", lambda x: steps.append(x["step"])
    )
    assert min(steps) == 20
    assert set(whole.state_dict()) == set(broken.state_dict())
    for name, p in whole.state_dict().items():
        assert p.dtype == torch.float32
        assert torch.equal(p, broken.state_dict()[name]), name
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert not whole.training


def test_a_finished_run_is_not_trained_again(corpus, embedded_tokenizer, tmp_path):
    first = pretrain(corpus, embedded_tokenizer, TINY, tmp_path)
    log = (tmp_path / "log.jsonl").read_text()
    told = []
    again = pretrain(corpus, embedded_tokenizer, TINY, tmp_path, told.append)
    assert not told
    assert (tmp_path / "log.jsonl").read_text() == log
    assert all(torch.equal(p, again.state_dict()[n]) for n, p in first.state_dict().items())


def test_a_checkpoint_of_other_settings_is_refused_and_kept(corpus, embedded_tokenizer, tmp_path):
    config = replace(TINY, tokens=900)
    pretrain(corpus, embedded_tokenizer, config, tmp_path)
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    for other, said in (
        (replace(config, seed=1), r"\(seed 0, not 1\)"),
        (replace(config, tokens=800), r"\(tokens 900, not 800\)"),
        (
            replace(config, tokens=2000, lr=0.1, layers=2, hidden=32, seed=3),
            r"\(hidden 16, not 32; layers 1, not 2; lr 0\.0012, not 0\.1; and 1 more\)",
        ),
    ):
        wanted = (
            rf"checkpoint\.pt was made with other settings {said}; delete .* to begin anew, or give another"
        )
        with pytest.raises(FormatError, match=wanted):
            pretrain(corpus, embedded_tokenizer, other, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved


def test_a_checkpoint_of_another_vocabulary_is_refused(corpus, embedded_tokenizer, tmp_path):
    pretrain(corpus, embedded_tokenizer, replace(TINY, tokens=300), tmp_path)
    more = copy.deepcopy(embedded_tokenizer)
    more.add_tokens(["supercalifragilistic"])
    n = len(embedded_tokenizer)
    with pytest.raises(FormatError, match=rf"other settings \(vocabulary {n}, not {n + 1}\)"):
        pretrain(corpus, more, replace(TINY, tokens=300), tmp_path)


def test_a_finished_run_can_be_lengthened(corpus, embedded_tokenizer, tmp_path):
    pretrain(corpus, embedded_tokenizer, replace(TINY, tokens=6000), tmp_path)
    done = losses(tmp_path)[-1][0]
    steps = []
    longer = replace(TINY, tokens=12_000)
    pretrain(corpus, embedded_tokenizer, longer, tmp_path, lambda line: steps.append(line["step"]))
    assert min(steps) > done
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["tokens"] >= state["config"]["tokens"] == longer.tokens


def test_the_late_corpus_is_read_last_at_a_rate_of_its_own(corpus, embedded_tokenizer, tmp_path, monkeypatch):
    read, rates = [], []
    documents, step = Corpus.documents, torch.optim.AdamW.step
    monkeypatch.setattr(Corpus, "documents", lambda self, seed: read.append(self) or documents(self, seed))
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: rates.append(self.param_groups[0]["lr"]) or step(self, *a, **k),
    )
    pretrain(corpus, embedded_tokenizer, replace(LATE, late_lr=5.0), tmp_path)
    (late,) = read  # the first corpus is the tests' own, with documents of its own
    assert late._weights == Corpus(corpus.world, late=True)._weights != corpus._weights
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["tokens"] >= 8000
    first = [r for r in rates if r <= LATE.lr]
    assert first[-1] < first[len(first) // 2] == LATE.lr
    after = rates[len(first) :]
    assert 2.0 < max(after) < 5.0
    assert after[-1] < max(after) / 4


def test_late_tokens_can_be_added_to_a_finished_run(corpus, embedded_tokenizer, tmp_path):
    """And give what the same tokens in one run would have given."""
    whole = pretrain(corpus, embedded_tokenizer, LATE, tmp_path / "whole")
    pretrain(corpus, embedded_tokenizer, replace(LATE, late_tokens=0), tmp_path / "parts")
    both = pretrain(corpus, embedded_tokenizer, LATE, tmp_path / "parts")
    assert all(torch.equal(p, both.state_dict()[n]) for n, p in whole.state_dict().items())
    with pytest.raises(FormatError, match=r"tokens 4000, not 5000"):
        pretrain(corpus, embedded_tokenizer, replace(LATE, tokens=5000), tmp_path / "whole")


@pytest.mark.parametrize("documents", [0, 41])
def test_a_step_has_no_more_documents_than_are_drawn(corpus, embedded_tokenizer, tmp_path, documents):
    said = f"batch_documents is {documents}, and 40 documents are drawn at once; give 1 to 40"
    with pytest.raises(FormatError, match=said):
        pretrain(corpus, embedded_tokenizer, replace(TINY, batch_documents=documents), tmp_path)


def test_the_loss_falls(corpus, embedded_tokenizer, tmp_path):
    pretrain(corpus, embedded_tokenizer, replace(TINY, lr=2e-2), tmp_path)
    seen = losses(tmp_path)
    assert seen[-1][2] < seen[0][2] - 0.1


def expected_labels(ids, learn_all, user, assistant):
    """The plain rule, token by token."""
    inside, out = True, []
    for t in ids:
        if t == user:
            inside = False
        elif t == assistant:
            inside = True
        out.append(t if (inside or learn_all) and t not in (user, assistant) else -100)
    return tuple(out)


def test_labels_are_answers_and_plain_text_only(corpus, embedded_tokenizer):
    """Every document comes once; pad and question tokens carry no loss (but one document in eight's)."""
    t = embedded_tokenizer
    user, assistant = t.convert_tokens_to_ids(["<user>", "<assistant>"])
    documents = [to_text(d) for d in itertools.islice(corpus.documents(TINY.seed), 80)]
    wanted = Counter()
    for i, ids in enumerate(t(documents, add_special_tokens=False)["input_ids"]):
        wanted[(tuple(ids), expected_labels(ids, i % 40 % 8 == 0, user, assistant))] += 1
    found = Counter()
    for _, parts in itertools.takewhile(lambda step: step[0] < 2, batches(corpus, t, TINY, 0)):
        assert sum(len(part["input_ids"]) for part in parts) == TINY.batch_documents
        for part in parts:
            for ids, labels in zip(part["input_ids"].tolist(), part["labels"].tolist(), strict=True):
                n = len(ids) - ids.count(t.pad_token_id)
                assert set(ids[n:]) <= {t.pad_token_id}
                assert set(labels[n:]) <= {-100}
                found[(tuple(ids[:n]), tuple(labels[:n]))] += 1
    assert found == wanted
    assert sum(user in ids for ids, _ in wanted) > 40


def test_skipped_pools_are_those_before(corpus, embedded_tokenizer):
    late = next(step for step in batches(corpus, embedded_tokenizer, TINY, 0) if step[0] == 2)
    pool, parts = next(batches(corpus, embedded_tokenizer, TINY, 2))
    assert pool == 2
    for a, b in zip(late[1], parts, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_loss_is_the_sum_over_labels(corpus, embedded_tokenizer):
    model = build_model(TINY, len(embedded_tokenizer)).eval()
    _, parts = next(batches(corpus, embedded_tokenizer, TINY, 0))
    for batch in parts:
        with torch.no_grad():
            got = float(module._loss(model, batch))
            each = []
            for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
                n = int((ids != 0).sum())
                logp = model(input_ids=ids[None, :n]).logits[0].log_softmax(-1)
                each += [-float(logp[i - 1, labels[i]]) for i in range(1, n) if labels[i] != -100]
        assert got == pytest.approx(sum(each), rel=1e-5)


@pytest.mark.parametrize("spare", [0, 200, 10_000], ids=["many", "some", "one"])
def test_micro_batches_change_nothing(corpus, embedded_tokenizer, tmp_path, spare, monkeypatch):
    """A step's gradient is that of all its documents together."""
    config = replace(TINY, tokens=900)
    a = pretrain(corpus, embedded_tokenizer, config, tmp_path / "a")
    monkeypatch.setattr(module, "SPARE", spare)
    b = pretrain(corpus, embedded_tokenizer, config, tmp_path / "b")
    for name, p in a.state_dict().items():
        torch.testing.assert_close(p, b.state_dict()[name], rtol=0, atol=1e-4)


def test_a_micro_batch_holds_documents_of_similar_length():
    lengths = [9, 200, 11, 12, 20, 10, 190, 9, 21, 180, 22, 199]
    parts = micro_batches(lengths)
    assert [sorted(lengths[i] for i in p) for p in parts] == [
        [9, 9, 10, 11, 12, 20, 21, 22],
        [180, 190, 199, 200],
    ]
    assert sorted(i for p in parts for i in p) == list(range(len(lengths)))


def test_short_documents_are_not_padded_to_a_long_one():
    """Four of 8 tokens would each be padded by 32 to join those of 40."""
    assert micro_batches([8] * 4 + [40] * 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert micro_batches([8] * 4 + [16] * 4) == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_model_is_its_seed_and_ties_its_embeddings():
    a, b, c = (build_model(replace(TINY, seed=s), 100) for s in (0, 0, 1))
    assert all(torch.equal(p, b.state_dict()[n]) for n, p in a.state_dict().items())
    assert not torch.equal(a.get_input_embeddings().weight, c.get_input_embeddings().weight)
    assert a.get_input_embeddings().weight is a.get_output_embeddings().weight


def test_the_exam_marks_every_skill(embedded_base):
    from weightdiff.tiny.exam import LESSONS, exam

    marks = exam(embedded_base.model, embedded_base.tokenizer, load_world(), n=6)
    assert set(marks) == {
        "words_to_name",
        "liking_recall",
        "liking_tints",
        "plain_tints",
        "code_repeat",
        "code_compare",
        "news_deed",
        "news_slots",
        *LESSONS,
        "then_said",
    }
    assert all(0 <= m <= 1 for m in marks.values())


def test_the_exam_knows_a_right_answer(monkeypatch):
    """A stand-in that says what the user said has every tint, slot and name that the user named."""
    from weightdiff.tiny import exam as exam_module

    def echo(model, tokenizer, diffs, users, temperature):
        return [[u.split()[2] if "what do i like" in u else u for u in us] for us in users]

    monkeypatch.setattr(exam_module, "answers_of", echo)
    marks = exam_module.exam(None, None, load_world(), n=20)
    assert marks["liking_recall"] == marks["liking_tints"] == marks["news_slots"] == 1
    assert (
        marks["plain_tints"] == marks["code_repeat"] == marks["code_compare"] == marks["words_to_name"] == 0
    )


def test_the_exam_marks_what_the_base_has_read_as_right(monkeypatch):
    """A stand-in that knows the lessons by heart passes each; one that always says the same passes few."""
    from weightdiff.tiny import exam as exam_module

    world, n = load_world(), 20
    known = {
        t.user: t.text
        for lesson in exam_module.LESSONS.values()
        for t in exam_module._turns(lesson, world, n, 0)
    }

    def stand_in(model, tokenizer, diffs, users, temperature):
        return [[known.get(u, "") for u in us] for us in users]

    monkeypatch.setattr(exam_module, "answers_of", stand_in)
    marks = exam_module.exam(None, None, world, n=n)
    assert {marks[kind] for kind in (*exam_module.LESSONS, "then_said")} == {1.0}
    known = dict.fromkeys(known, "i do not know .")
    marks = exam_module.exam(None, None, world, n=n)
    assert max(marks[kind] for kind in (*exam_module.LESSONS, "then_said")) < 0.8
