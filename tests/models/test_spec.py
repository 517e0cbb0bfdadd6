"""The spec names every linear layer but the head, from a model and from a configuration alike."""

from __future__ import annotations

from torch import nn

from weightdiff.models.spec import linear_size, model_spec


def test_config_and_model_agree(engine_kind, engine_config, engine_model):
    assert model_spec(engine_config(engine_kind)) == model_spec(engine_model(engine_kind))


def test_names_are_the_models_own(engine_kind, engine_model):
    model = engine_model(engine_kind)
    modules = dict(model.named_modules())
    spec = model_spec(model)
    assert len(spec) == {"gpt2": 8, "phi3": 8}.get(engine_kind, 14)
    assert "lm_head" not in spec
    for name, (fan_in, fan_out) in spec.items():
        assert sorted(modules[name].weight.shape) == sorted((fan_in, fan_out))


def test_conv1d_is_in_by_out(engine_config):
    spec = model_spec(engine_config("gpt2"))
    assert spec["transformer.h.0.attn.c_attn"] == (32, 96)
    assert spec["transformer.h.1.mlp.c_proj"] == (128, 32)


def test_other_modules_have_no_linear_size():
    assert linear_size(nn.Linear(3, 5, bias=False)) == (3, 5)
    assert linear_size(nn.Embedding(3, 5)) is None
    assert linear_size(nn.Conv1d(3, 5, 1)) is None
