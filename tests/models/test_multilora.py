"""Row LoRAs and shared LoRAs by hooks against merged weights, PEFT, and single runs."""

from __future__ import annotations

import pytest
import torch

from weightdiff.errors import BaseMismatchError
from weightdiff.models.multilora import BatchMismatchError, RowLoras, SharedLora, attach, switched_off
from weightdiff.models.spec import model_spec

RANKS = (1, 3, 4)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def ids():
    """Six rows of seven tokens, without padding."""
    return torch.randint(3, 97, (6, 7), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def world(engine_kind, engine_model, random_lora, stack_slots):
    """A model, three LoRAs of different ranks, their stack, and an adapter."""
    model = engine_model(engine_kind)
    spec = model_spec(model)
    loras = [random_lora(spec, rank, seed, pad_to=4) for seed, rank in enumerate(RANKS)]
    return model, loras, stack_slots(loras), random_lora(spec, 5, 9)


def test_batch_equals_merged_weights(world, hand_merged, ids):
    model, loras, stacked, adapter = world
    with torch.no_grad(), attach(model, RowLoras(stacked, 2), [SharedLora(adapter)]):
        got = model(ids).logits
    for row in range(6):
        want = hand_merged(model, loras[row // 2], adapter)(ids[row : row + 1]).logits[0]
        torch.testing.assert_close(got[row], want, **TOLERANCE)
    assert (got - model(ids).logits).abs().max() > 1e-2


def test_general_mapping_with_rows_that_carry_none(world, hand_merged, ids):
    model, loras, stacked, _ = world
    slots = [2, -1, 0, 2, 1, -1]
    with torch.no_grad(), attach(model, RowLoras(stacked, torch.tensor(slots))):
        got = model(ids).logits
    for row, slot in enumerate(slots):
        reference = model if slot < 0 else hand_merged(model, loras[slot])
        torch.testing.assert_close(got[row], reference(ids[row : row + 1]).logits[0], **TOLERANCE)


def test_regular_mapping_takes_the_fast_way(world):
    _, _, stacked, _ = world
    assert RowLoras(stacked, torch.tensor([0, 0, 1, 1, 2, 2])).row_to_slot == 2
    assert isinstance(RowLoras(stacked, torch.tensor([0, 1, 0, 1, 2, 2])).row_to_slot, torch.Tensor)


# PEFT asks transformers by a name that it is giving up; theirs to change.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3"])
def test_batch_equals_peft(kind, engine_model, random_lora, stack_slots, under_peft, ids):
    model = engine_model(kind)
    spec = model_spec(model)
    scales = (2.0, 0.5, 1.0)
    loras = [random_lora(spec, rank, seed) for seed, rank in enumerate(RANKS)]
    folded = [
        {
            n: (
                torch.nn.functional.pad(d, (0, 0, 0, 4 - len(d))),
                torch.nn.functional.pad(s * u, (0, 4 - len(d))),
            )
            for n, (d, u) in lora.items()
        }
        for s, lora in zip(scales, loras, strict=True)
    ]
    adapter = random_lora(spec, 5, 9)
    with torch.no_grad(), attach(model, RowLoras(stack_slots(folded), 2), [SharedLora(adapter, scale=1.5)]):
        got = model(ids).logits
    for slot, (lora, scale) in enumerate(zip(loras, scales, strict=True)):
        peft_model = under_peft(engine_model(kind), {"diff": (lora, scale), "adapter": (adapter, 1.5)})
        with torch.no_grad():
            want = peft_model(ids[2 * slot : 2 * slot + 2]).logits
        torch.testing.assert_close(got[2 * slot : 2 * slot + 2], want, **TOLERANCE)


def test_gradients_equal_single_runs(world, ids):
    model, _, stacked, adapter = world
    masters = {n: (d.clone().requires_grad_(), u.clone().requires_grad_()) for n, (d, u) in stacked.items()}
    shared = {n: (d.clone().requires_grad_(), u.clone().requires_grad_()) for n, (d, u) in adapter.items()}
    with attach(model, RowLoras(masters, 2), [SharedLora(shared)]):
        _loss(model, ids).sum().backward()
    total = {n: [torch.zeros_like(d), torch.zeros_like(u)] for n, (d, u) in shared.items()}
    for slot in range(3):
        one = {
            n: tuple(t[slot : slot + 1].clone().requires_grad_() for t in pair) for n, pair in stacked.items()
        }
        own = {n: tuple(t.clone().requires_grad_() for t in pair) for n, pair in adapter.items()}
        with attach(model, RowLoras(one, 2), [SharedLora(own)]):
            _loss(model, ids[2 * slot : 2 * slot + 2]).sum().backward()
        for name, pair in one.items():
            for i in (0, 1):
                torch.testing.assert_close(masters[name][i].grad[slot], pair[i].grad[0], atol=1e-5, rtol=1e-4)
                total[name][i] += own[name][i].grad
    for name, pair in shared.items():
        for i in (0, 1):
            assert pair[i].grad.abs().max() > 0
            torch.testing.assert_close(pair[i].grad, total[name][i], atol=1e-4, rtol=1e-4)


def _loss(model, ids):
    """Mean next-token loss of each row."""
    logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def test_gathered_rows_send_gradients_to_their_slots(engine_model, random_lora, stack_slots, ids):
    model = engine_model("llama")
    spec = model_spec(model)
    stacked = stack_slots([random_lora(spec, 2, seed) for seed in range(3)])
    grads = []
    for mapping, order in ((2, [0, 1, 2, 3, 4, 5]), (torch.tensor([2, 0, 1, 0, 2, 1]), [4, 0, 2, 1, 5, 3])):
        masters = {n: tuple(t.clone().requires_grad_() for t in pair) for n, pair in stacked.items()}
        with attach(model, RowLoras(masters, mapping)):
            _loss(model, ids[order]).sum().backward()
        grads.append(torch.cat([t.grad.flatten() for pair in masters.values() for t in pair]))
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-4)


def test_rows_of_one_slot_next_to_each_other_share_its_factors(engine_model, random_lora, stack_slots, ids):
    model = engine_model("llama")
    stacked = stack_slots([random_lora(model_spec(model), 2, seed) for seed in range(3)])
    rows = RowLoras(stacked, torch.tensor([2, 2, 0, 0, 2, 2]))
    assert rows.stretches().tolist() == [2, 0, 2]
    assert RowLoras(stacked, torch.tensor([2, 2, 0, 0, 0, 1])).stretches().tolist() == [2, 2, 0, 0, 0, 1]
    with torch.no_grad(), attach(model, rows):
        got = model(ids).logits
    for i, slot in enumerate([2, 2, 0, 0, 2, 2]):
        one = {n: (d[slot : slot + 1], u[slot : slot + 1]) for n, (d, u) in stacked.items()}
        with torch.no_grad(), attach(model, RowLoras(one, 1)):
            torch.testing.assert_close(got[i], model(ids[i : i + 1]).logits[0], **TOLERANCE)


def test_bf16_base_sends_fp32_gradients_to_fp32_masters(engine_model, random_lora, stack_slots, ids):
    model = engine_model("llama", torch.bfloat16)
    spec = model_spec(model)
    stacked = stack_slots([random_lora(spec, 2, seed) for seed in range(3)])
    masters = {n: tuple(t.requires_grad_() for t in pair) for n, pair in stacked.items()}
    with attach(model, RowLoras(masters, 2)):
        logits = model(ids).logits
        assert logits.dtype == torch.bfloat16
        logits.float().pow(2).mean().backward()
    for pair in masters.values():
        assert all(t.grad.dtype == torch.float32 and t.grad.abs().max() > 0 for t in pair)


def test_frozen_factors_changed_in_place_are_seen(engine_model, random_lora, ids):
    model = engine_model("llama", torch.bfloat16)
    adapter = random_lora(model_spec(model), 2, 1)
    bare = model(ids).logits
    with attach(model, shared=[SharedLora(adapter)]), torch.no_grad():
        assert not torch.equal(model(ids).logits, bare)
        for _, up in adapter.values():
            up.zero_()
        assert torch.equal(model(ids).logits, bare)


def test_row_mask_silences_the_adapter_for_some_rows(world, hand_merged, ids):
    model, _, _, adapter = world
    mask = torch.tensor([True, False, True, True, False, False])
    with torch.no_grad(), attach(model, shared=[SharedLora(adapter, row_mask=mask)]):
        got = model(ids).logits
    torch.testing.assert_close(got[mask], hand_merged(model, adapter)(ids[mask]).logits, **TOLERANCE)
    torch.testing.assert_close(got[~mask], model(ids[~mask]).logits, **TOLERANCE)


def test_nested_blocks_add_up(world, hand_merged, ids):
    model, loras, _, adapter = world
    with torch.no_grad(), attach(model, shared=[SharedLora(loras[2])]):
        with attach(model, shared=[SharedLora(adapter)]):
            both = model(ids).logits
        outer = model(ids).logits
    torch.testing.assert_close(both, hand_merged(model, loras[2], adapter)(ids).logits, **TOLERANCE)
    torch.testing.assert_close(outer, hand_merged(model, loras[2])(ids).logits, **TOLERANCE)


def test_switched_off_is_the_base_exactly(world, ids):
    model, _, stacked, adapter = world
    bare = model(ids).logits
    with torch.no_grad(), attach(model, RowLoras(stacked, 2), [SharedLora(adapter)]) as attachment:
        first = model(ids).logits
        with switched_off(model):
            assert torch.equal(model(ids).logits, bare)
        with attachment.switched_off():
            assert torch.equal(model(ids).logits, bare)
        assert torch.equal(model(ids).logits, first)
    assert not torch.equal(first, bare)


def test_base_is_bit_identical_afterwards(world, ids):
    model, _, stacked, adapter = world
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bare = model(ids).logits
    with attach(model, RowLoras(stacked, 2), [SharedLora(adapter)]):
        model(ids)
    with pytest.raises(BatchMismatchError), attach(model, RowLoras(stacked, 2)):
        model(ids[:5])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(ids).logits, bare)


def test_misfits_are_named_and_nothing_is_attached(engine_model, random_lora):
    model = engine_model("llama")
    good = random_lora({"model.layers.0.mlp.up_proj": (32, 48)}, 2, 0)
    lost = random_lora({"model.layers.7.mlp.up_proj": (32, 48), "model.embed_tokens": (97, 32)}, 2, 0)
    wide = random_lora({"model.layers.1.mlp.up_proj": (64, 48)}, 2, 0)
    message = (
        "2 modules are no linear layers.*layers.7.mlp.up_proj, model.embed_tokens; "
        "1 modules have other sizes.*32 -> 48"
    )
    with (
        pytest.raises(BaseMismatchError, match=message),
        attach(model, shared=[SharedLora(good), SharedLora(lost), SharedLora(wide)]),
    ):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_wrong_batch_sizes_are_refused(engine_model, random_lora, stack_slots, ids):
    model = engine_model("llama")
    stacked = stack_slots([random_lora(model_spec(model), 2, seed) for seed in range(3)])
    with (
        attach(model, RowLoras(stacked, 2)),
        pytest.raises(BatchMismatchError, match=r"batch of 4 rows.* for 6"),
    ):
        model(ids[:4])
    mask = torch.ones(5, dtype=torch.bool)
    one = random_lora(model_spec(model), 2, 0)
    with (
        attach(model, shared=[SharedLora(one, row_mask=mask)]),
        pytest.raises(BatchMismatchError, match="for 5"),
    ):
        model(ids)
    with pytest.raises(BatchMismatchError, match=r"slots -1 \.\.\. 2"):
        RowLoras(stacked, torch.tensor([0, 3]))
    with pytest.raises(BatchMismatchError, match="1 or more"):
        RowLoras(stacked, 0)
