"""A cache with room gives what transformers' own gives, whatever is done to it in between."""

from __future__ import annotations

import pytest
import torch

from weightdiff.models.cache import ROOM, RoomyLayer, with_room

STEPS = ROOM + 4


def read(model, cache, ids):
    out = model(input_ids=ids, past_key_values=cache, use_cache=True)
    return out.logits[:, -1], out.past_key_values


@pytest.fixture(params=["llama", "qwen3"])
def model(request, tiny_model):
    return tiny_model(request.param).requires_grad_(False)


@pytest.mark.parametrize("selected", [None, [2, 0], [1, 1, 0, 2, 2]])
def test_predictions_are_those_of_the_plain_cache(model, selected):
    ids = torch.randint(3, 90, (3, 5 + STEPS), generator=torch.Generator().manual_seed(0))
    found = []
    with torch.no_grad():
        for room in (False, True):
            logits, cache = read(model, None, ids[:, :5])
            cache, rows, said = with_room(cache) if room else cache, ids, [logits]
            for t in range(5, 5 + STEPS):
                if selected is not None and t == 9:
                    at = torch.tensor(selected)
                    cache.batch_select_indices(at)
                    rows = rows[at]
                said.append(read(model, cache, rows[:, t : t + 1])[0])
            found.append(said)
        assert all(type(layer) is RoomyLayer for layer in cache.layers)
    assert cache.get_seq_length() == 5 + STEPS
    for plain, roomy in zip(*found, strict=True):
        torch.testing.assert_close(roomy, plain, atol=1e-5, rtol=1e-4)


def test_a_token_more_is_written_where_there_is_room(model):
    with torch.no_grad():
        cache = with_room(read(model, None, torch.tensor([[5, 6, 7]]))[1])
        read(model, cache, torch.tensor([[8]]))
        before = cache.layers[0].keys.data_ptr()
        read(model, cache, torch.tensor([[9]]))
        assert cache.layers[0].keys.data_ptr() == before
        assert cache.layers[0].keys.shape[2] == 5


def test_gradients_see_tensors_of_their_own(model):
    ids = torch.tensor([[5, 6, 7]])
    embedded = model.get_input_embeddings()(ids).requires_grad_()
    cache = with_room(model(inputs_embeds=embedded, use_cache=True).past_key_values)
    logits, _ = read(model, cache, torch.tensor([[8]]))
    logits.sum().backward()
    got, embedded.grad = embedded.grad, None
    plain = model(inputs_embeds=embedded, use_cache=True).past_key_values
    read(model, plain, torch.tensor([[8]]))[0].sum().backward()
    torch.testing.assert_close(got, embedded.grad)


def test_other_caches_stay_as_they_are(tiny_model):
    gemma = tiny_model("gemma3", sliding_window=4)
    with torch.no_grad():
        cache = read(gemma, None, torch.tensor([[5, 6, 7]]))[1]
    kinds = [type(layer) for layer in cache.layers]
    after = [type(layer) for layer in with_room(cache).layers]
    assert all(b is a or b is RoomyLayer for a, b in zip(kinds, after, strict=True))
    assert any(a is b for a, b in zip(kinds, after, strict=True))
    assert with_room(None) is None
