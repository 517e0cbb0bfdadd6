"""Merged weights against attached LoRAs, and the base bit by bit afterwards."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs.types import DenseDelta, LoraFactors, StackedLoras, WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError
from weightdiff.models.merge import merge_into, merged, unmerge
from weightdiff.models.multilora import BatchMismatchError, RowLoras, SharedLora, attach
from weightdiff.models.spec import model_spec

IDS = torch.arange(3, 21).view(3, 6)


@pytest.fixture
def lora_diff(random_lora):
    """Makes a diff of a rank and seed for a model, on its even-numbered modules only when `half` is set."""

    def make(model, rank, seed, scale=1.0, half=False):
        spec = model_spec(model)
        names = list(spec)[:: 2 if half else 1]
        drawn = random_lora({n: spec[n] for n in names}, rank, seed)
        return WeightDiff({n: LoraFactors(down, up, scale) for n, (down, up) in drawn.items()})

    return make


def test_stacked_and_shared_diffs_equal_merged(engine_kind, engine_model, lora_diff):
    model = engine_model(engine_kind)
    diffs = [lora_diff(model, 2, 0, 2.0), lora_diff(model, 5, 1, 0.5, half=True), WeightDiff({})]
    adapter = lora_diff(model, 3, 7, 1.5)
    rows = RowLoras.from_stacked(StackedLoras.from_diffs(diffs))
    with torch.no_grad(), attach(model, rows, [SharedLora.from_diff(adapter)]):
        got = model(IDS).logits
    for i, diff in enumerate(diffs):
        with torch.no_grad(), merged(model, adapter), merged(model, diff):
            torch.testing.assert_close(got[i], model(IDS[i : i + 1]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_comes_back_bit_by_bit(dtype, engine_kind, engine_model, lora_diff):
    model = engine_model(engine_kind, dtype)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pointers = {k: v.data_ptr() for k, v in model.state_dict().items()}
    diff = lora_diff(model, 2, 0)
    with pytest.raises(RuntimeError, match="stop"), merged(model, diff), merged(model, diff):
        raise RuntimeError("stop")
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert {k: v.data_ptr() for k, v in after.items()} == pointers


def test_dense_equals_low_rank(engine_model, lora_diff):
    model = engine_model("gpt2")
    diff = lora_diff(model, 2, 0, 0.7)
    dense = WeightDiff({name: DenseDelta(m.dense()) for name, m in diff.modules.items()})
    with torch.no_grad(), merged(model, diff):
        want = model(IDS).logits
    with torch.no_grad(), merged(model, dense):
        assert torch.equal(model(IDS).logits, want)
    with pytest.raises(FormatError, match="no LoRA"):
        SharedLora.from_diff(dense)


def test_merge_into_and_unmerge(engine_model, lora_diff):
    model = engine_model("llama")
    bare = model(IDS).logits
    originals = merge_into(model, lora_diff(model, 2, 0))
    assert (model(IDS).logits - bare).abs().max() > 1e-2
    unmerge(model, originals)
    assert torch.equal(model(IDS).logits, bare)


def test_embeddings_and_other_parameters_are_merged_too(engine_model):
    """A whole finetune (every parameter moved) as a diff is the finetuned model, and comes off again."""
    model, tuned = engine_model("gpt2"), engine_model("gpt2")
    stream = torch.Generator().manual_seed(4)
    for p in tuned.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=stream)
    moved = {k: tuned.get_parameter(k) - p for k, p in model.named_parameters()}
    modules = {}
    for name, module in model.named_modules():
        delta = moved.get(f"{name}.weight")
        if delta is not None and delta.ndim == 2:
            conv = type(module).__name__ == "Conv1D"
            modules[name] = DenseDelta(moved.pop(f"{name}.weight").T if conv else moved.pop(f"{name}.weight"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    diff = WeightDiff(modules, parameters=moved)
    assert {"transformer.wte", "transformer.wpe"} < set(modules)
    assert {"transformer.ln_f.bias", "transformer.h.0.ln_1.weight"} < set(moved)
    with torch.no_grad(), merged(model, diff):
        torch.testing.assert_close(model(IDS).logits, tuned(IDS).logits, rtol=0, atol=1e-5)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, tuned.get_parameter(name), rtol=0, atol=1e-6)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_parameters_that_do_not_fit_are_named(engine_model):
    model = engine_model("llama")
    diff = WeightDiff({}, parameters={"model.norm.weight": torch.ones(3), "model.norm.bias": torch.ones(32)})
    with pytest.raises(
        BaseMismatchError, match=r"model\.norm\.weight \[3\] \(the base has \[32\]\)"
    ) as caught:
        merge_into(model, diff)
    assert "model.norm.bias [32] (the base has none)" in str(caught.value)
    table = WeightDiff({"model.embed_tokens": LoraFactors(torch.ones(1, 32), torch.ones(96, 1))})
    with pytest.raises(
        BaseMismatchError, match=r"model\.embed_tokens \(in 32, out 96; the base has in 32, out 97"
    ):
        merge_into(model, table)


def test_a_misfit_changes_nothing(engine_model, lora_diff):
    model = engine_model("llama")
    bare = model(IDS).logits
    wrong = {
        **lora_diff(model, 2, 0).modules,
        "model.layers.9.x": LoraFactors(torch.ones(1, 3), torch.ones(2, 1)),
    }
    with pytest.raises(BaseMismatchError, match=r"layers\.9\.x"):
        merge_into(model, WeightDiff(wrong))
    assert torch.equal(model(IDS).logits, bare)


def test_diffs_that_change_nothing_still_count_as_slots(engine_model):
    model = engine_model("llama")
    stacked = StackedLoras.from_diffs([WeightDiff({})] * 3)
    assert RowLoras.from_stacked(stacked, 2).rows == 6
    rows = RowLoras.from_stacked(stacked, torch.tensor([2, -1, 0]))
    with attach(model, rows):
        assert torch.equal(model(IDS).logits, engine_model("llama")(IDS).logits)
    with pytest.raises(BatchMismatchError, match="but holds"):
        RowLoras.from_stacked(stacked, torch.tensor([3]))


def test_routed_experts_are_refused_by_row():
    layer = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    model = torch.nn.ModuleDict({"mlp": layer})
    factors = (torch.zeros(2, 1, 4), torch.zeros(2, 4, 1))
    with (
        pytest.raises(BaseMismatchError, match=r"mlp\.experts\.0 are routed experts"),
        attach(model, RowLoras({"mlp.experts.0": factors}, 1)),
    ):
        pass
