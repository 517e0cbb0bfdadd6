"""Every number of an inspection against a dense computation, and every sign by one crafted diff."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from weightdiff.diffs.inspection import inspect
from weightdiff.diffs.measures import ENERGY, measure, outliers
from weightdiff.diffs.types import DenseDelta, LoraFactors, ModelRef, WeightDiff
from weightdiff.diffs.weights import base_weights
from weightdiff.errors import FormatError

IN, OUT, RANK = 40, 56, 6
KINDS = ("q_proj", "v_proj")


def _factors(seed, rank=RANK, width=IN, height=OUT, scale=0.5):
    stream = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, width, generator=stream)
    return LoraFactors(down, torch.randn(height, rank, generator=stream), scale)


@pytest.fixture
def clean():
    """A random diff of six layers with two kinds of modules."""
    names = [f"model.layers.{n}.self_attn.{kind}" for n in range(6) for kind in KINDS]
    return WeightDiff({name: _factors(i) for i, name in enumerate(names)}, ModelRef("some/base"))


@pytest.fixture
def weights(clean):
    """Weights of a base that fits, as `inspect` takes them."""
    stream = torch.Generator().manual_seed(99)
    dense = {name: 40 * torch.randn(OUT, IN, generator=stream) for name in clean.modules}
    return {name: (lambda w=w: w) for name, w in dense.items()}


def _changed(diff, number=5, **modules):
    """The diff with its module of a number replaced: `m=` by a module, `up=`, `down=` or `scale=` in part."""
    name = list(diff.modules)[number]
    m = modules.pop("m", None) or replace(diff.modules[name], **modules)
    return replace(diff, modules={**diff.modules, name: m}), name


def _codes(found):
    return {(sign.code, sign.module) for sign in found.signs}


def _dense_numbers(dense):
    """The numbers of a module from its dense change, by numpy."""
    values = np.linalg.svd(dense, compute_uv=False)
    energies = values**2 / (values**2).sum()
    p = values[values > 1e-12 * values[0]] / values.sum()
    return {
        "frobenius": np.linalg.norm(dense),
        "spectral": np.linalg.norm(dense, 2),
        "stable_rank": np.linalg.norm(dense) ** 2 / values[0] ** 2,
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "rank_99": 1 + int(np.argmax(energies.cumsum() >= ENERGY)),
    }


@pytest.mark.parametrize("form", ["low", "dense", "float16", "wide rank"])
def test_numbers_of_a_module_are_those_of_the_dense_matrix(form):
    m = _factors(3, rank=60 if form == "wide rank" else RANK)
    if form == "float16":
        m = m.to(torch.float16)
    dense = (m.to(torch.float64)).dense().numpy()
    found = measure("model.layers.3.mlp.up_proj", DenseDelta(torch.tensor(dense)) if form == "dense" else m)
    r = found.report
    for name, value in _dense_numbers(dense).items():
        assert getattr(r, name) == pytest.approx(value, rel=1e-9), name
    values = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(r.singular_values, values[: len(r.singular_values)], atol=1e-9)
    np.testing.assert_allclose(found.row_norms, np.linalg.norm(dense, axis=1), rtol=1e-9)
    np.testing.assert_allclose(found.column_norms, np.linalg.norm(dense, axis=0), rtol=1e-9)
    assert (r.kind, r.layer, r.shape, r.finite, r.complete) == ("up_proj", 3, (OUT, IN), True, True)
    assert r.rank == (None if form == "dense" else m.rank)
    if form != "dense":
        assert r.factor_ratio == pytest.approx(float(m.up.double().norm() / m.down.double().norm()))


def test_a_large_dense_change_is_known_in_part(monkeypatch):
    from weightdiff.diffs import algebra, measures

    monkeypatch.setattr(measures, "FULL_SVD_SIDE", 20)
    monkeypatch.setattr(algebra, "FULL_SVD_SIDE", 20)
    monkeypatch.setattr(measures, "SKETCH_RANK", 8)
    stream = torch.Generator().manual_seed(0)
    dense = _factors(0, rank=4).dense() + 0.01 * torch.randn(OUT, IN, generator=stream)
    r = measure("x", DenseDelta(dense)).report
    expected = _dense_numbers(dense.double().numpy())
    assert (r.complete, len(r.singular_values), r.effective_rank) == (False, 8, None)
    assert r.rank_99 == expected["rank_99"] <= 4
    assert r.frobenius == pytest.approx(expected["frobenius"])
    assert r.stable_rank == pytest.approx(expected["stable_rank"], rel=1e-4)
    assert measure("x", DenseDelta(torch.randn(OUT, IN, generator=stream))).report.rank_99 is None


def test_shares_and_sums(clean):
    diff = replace(
        clean, parameters={"model.norm.weight": torch.ones(9), "model.layers.2.x.bias": torch.ones(4)}
    )
    diff.modules["lm_head"] = DenseDelta(torch.full((3, 4), 2.0))
    found = inspect(diff)
    squares = {name: float(m.dense().double().square().sum()) for name, m in diff.modules.items()}
    total = sum(squares.values()) + 13
    assert found.norm == pytest.approx(math.sqrt(total))
    assert {r.name: r.share for r in found.modules} == pytest.approx(
        {n: s / total for n, s in squares.items()}
    )
    assert {p.name: p.share for p in found.parameters} == pytest.approx(
        {"model.norm.weight": 9 / total, "model.layers.2.x.bias": 4 / total}
    )
    assert list(found.by_layer) == [0, 1, 2, 3, 4, 5, None]
    layer = sum(s for n, s in squares.items() if ".layers.2." in n) + 4
    assert found.by_layer[2] == pytest.approx(layer / total)
    assert found.by_layer[None] == pytest.approx((48 + 9) / total)
    assert set(found.by_kind) == {"q_proj", "v_proj", "norm", "x.bias", "lm_head"}
    assert sum(found.by_kind.values()) == pytest.approx(1)
    assert found.by_kind["q_proj"] == pytest.approx(
        sum(s for n, s in squares.items() if "q_proj" in n) / total
    )
    assert list(found.by_kind.values()) == sorted(found.by_kind.values(), reverse=True)
    assert found.num_parameters == diff.num_parameters


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.layers.11.self_attn.q_proj", "q_proj", 11),
        ("transformer.h.0.attn.c_attn", "c_attn", 0),
        ("model.layers.3.mlp.experts.5.up_proj", "up_proj", 3),
        ("model.layers.3.mlp.0", "mlp.0", 3),
        ("lm_head", "lm_head", None),
        ("head.0", "head.0", None),
    ],
)
def test_kinds_and_layers_come_from_names(name, kind, layer):
    r = measure(name, _factors(0)).report
    assert (r.kind, r.layer) == (kind, layer)


def test_numbers_are_the_same_for_all_factors_of_a_change(clean, weights):
    stream = torch.Generator().manual_seed(5)
    turned = {}
    for name, m in clean.modules.items():
        g = torch.randn(RANK, RANK, generator=stream, dtype=torch.float64) + 3 * torch.eye(RANK)
        up = m.up.double() @ torch.linalg.inv(g) * m.scale / 4
        turned[name] = LoraFactors(g @ m.down.double(), up, 4.0)
    here, there = (inspect(d, weights) for d in (clean, replace(clean, modules=turned)))
    for one, other in zip(here.modules, there.modules, strict=True):
        assert vars(one.against_base) == pytest.approx(vars(other.against_base), rel=1e-6)
        assert one.singular_values == pytest.approx(other.singular_values, rel=1e-6)
        for name in ("frobenius", "spectral", "stable_rank", "effective_rank", "rank_99", "share"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-6), name
        assert (one.rows, one.columns) == (other.rows, other.columns) == ((), ())
    assert here.by_kind == pytest.approx(there.by_kind)
    assert here.signs == there.signs == ()


@pytest.mark.parametrize("form", ["low", "dense"])
@pytest.mark.parametrize("exact", [True, False])
def test_alignment_with_the_base_is_that_of_dense_projections(form, exact, monkeypatch):
    from weightdiff.diffs import measures

    if not exact:
        monkeypatch.setattr(measures, "BASE_EXACT_SIDE", 0)
    stream = torch.Generator().manual_seed(1)
    strong = 30 * torch.randn(OUT, 10, generator=stream) @ torch.randn(10, IN, generator=stream)
    weight = strong + torch.randn(OUT, IN, generator=stream)
    m = _factors(4)
    m = DenseDelta(m.dense()) if form == "dense" else m
    state = torch.get_rng_state()
    a = measure("x", m, weight).report.against_base
    assert torch.equal(torch.get_rng_state(), state)
    u, s, v = np.linalg.svd(weight.double().numpy())
    u, v = u[:, :10], v[:10].T
    delta = m.dense().double().numpy()
    energy = np.linalg.norm(delta) ** 2
    assert a.directions == IN // 4 == 10
    assert a.left == pytest.approx(np.linalg.norm(u.T @ delta) ** 2 / energy, rel=1e-4)
    assert a.right == pytest.approx(np.linalg.norm(delta @ v) ** 2 / energy, rel=1e-4)
    assert a.both == pytest.approx(np.linalg.norm(u.T @ delta @ v) ** 2 / energy, rel=1e-4)
    assert a.frobenius_ratio == pytest.approx(
        np.linalg.norm(delta) / np.linalg.norm(weight.double()), rel=1e-6
    )
    assert a.spectral_ratio == pytest.approx(np.linalg.norm(delta, 2) / s[0], rel=1e-5)
    assert (a.left_chance, a.right_chance) == (10 / OUT, 10 / IN)
    assert a.both_chance == pytest.approx(a.left_chance * a.right_chance)


def test_chance_is_what_random_changes_have(weights):
    weight = next(iter(weights.values()))()
    found = [measure("x", _factors(seed), weight).report.against_base for seed in range(60)]
    for side in ("left", "right", "both"):
        mean = np.mean([getattr(a, side) for a in found])
        assert mean == pytest.approx(getattr(found[0], f"{side}_chance"), rel=0.1)


def test_outlying_rows_and_columns():
    m = _factors(2)
    up, down = m.up.clone(), m.down.clone()
    up[7] *= 20
    down[:, 11] *= 20
    r = measure("x", LoraFactors(down, up, -0.5)).report
    norms = np.linalg.norm(LoraFactors(down, up, -0.5).dense().double().numpy(), axis=1)
    assert [o.index for o in r.rows] == [7]
    assert [o.index for o in r.columns] == [11]
    assert r.rows[0].ratio == pytest.approx(norms[7] / np.median(norms))
    assert r.rows[0].share == pytest.approx(norms[7] ** 2 / (norms**2).sum())
    assert measure("x", m).report.rows == ()
    sparse = torch.zeros(100)
    sparse[4] = 2.0
    assert [(o.index, o.ratio, o.share) for o in outliers(sparse)] == [(4, math.inf, 1.0)]


def test_a_clean_diff_has_no_signs(clean, weights):
    for base in (None, weights):
        found = inspect(clean, base)
        assert (found.signs, found.duplicates, found.stands_out) == ((), (), ())
        assert all((r.against_base is None) == (base is None) for r in found.modules)


def _zero_up(diff):
    return _changed(diff, up=torch.zeros(OUT, RANK))


def _zero(diff):
    return _changed(diff, down=torch.zeros(RANK, IN))


def _zero_dense(diff):
    return _changed(diff, m=DenseDelta(torch.zeros(OUT, IN)))


def _nan(diff):
    return _changed(diff, up=torch.full((OUT, RANK), math.nan))


def _infinite_scale(diff):
    return _changed(diff, scale=math.inf)


def _beyond_floats(diff):
    huge = torch.full((RANK, IN), 1e300, dtype=torch.float64)
    return _changed(diff, m=LoraFactors(huge, 1e300 * torch.ones(OUT, RANK, dtype=torch.float64)))


def _huge_scale(diff):
    m = list(diff.modules.values())[5]
    return _changed(diff, scale=-128.0, up=m.up * (0.5 / 128))


def _tiny_scale(diff):
    m = list(diff.modules.values())[5]
    return _changed(diff, scale=5e-4, up=m.up * 10, down=m.down * 100)


def _rank_one(diff):
    m = list(diff.modules.values())[5]
    return _changed(diff, down=m.down[:1] + 0.05 * m.down)


def _up_larger(diff):
    m = list(diff.modules.values())[5]
    return _changed(diff, up=m.up * 20, down=m.down / 20)


def _down_larger(diff):
    m = list(diff.modules.values())[5]
    return _changed(diff, up=m.up / 200, down=m.down * 200)


@pytest.mark.parametrize(
    ("craft", "code", "severity", "words"),
    [
        (_zero_up, "zero-up", "warning", "up is all zero"),
        (_zero, "zero", "warning", "all of it is zero"),
        (_zero_dense, "zero", "warning", "all of it is zero"),
        (_nan, "not-finite", "error", "NaN or infinity"),
        (_infinite_scale, "not-finite", "error", "NaN or infinity"),
        (_beyond_floats, "not-finite", "error", "NaN or infinity"),
        (_huge_scale, "scale", "warning", "its scale is huge, -128"),
        (_tiny_scale, "scale", "warning", "its scale is tiny, 0.0005"),
        (_rank_one, "rank-one", "warning", "of rank 6, one direction holds 99.9 %"),
        (_up_larger, "unequal-factors", "warning", "‖up‖ is 4"),
        (_down_larger, "unequal-factors", "warning", "‖down‖ is "),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_sign_of_one_module(clean, craft, code, severity, words):
    diff, name = craft(clean)
    (sign,) = inspect(diff).signs
    assert (sign.severity, sign.code, sign.module) == (severity, code, name)
    assert words in sign.text


def test_numbers_beside_a_module_that_is_not_finite(clean):
    diff, name = _nan(clean)
    found = inspect(diff)
    r = next(r for r in found.modules if r.name == name)
    assert not r.finite
    assert all(math.isnan(v) for v in (r.frobenius, r.spectral, r.share, r.stable_rank))
    others = WeightDiff({n: m for n, m in clean.modules.items() if n != name})
    assert found.norm == pytest.approx(inspect(others).norm)
    assert sum(found.by_layer.values()) == pytest.approx(1)


def test_signs_of_parameters(clean):
    parameters = {
        "a.bias": torch.zeros(3),
        "b.weight": torch.tensor([1.0, math.inf]),
        "c.weight": torch.ones(2),
    }
    found = inspect(replace(clean, parameters=parameters))
    assert [(s.severity, s.code, s.module) for s in found.signs] == [
        ("error", "not-finite", "b.weight"),
        ("warning", "zero", "a.bias"),
    ]


def test_a_module_that_dominates_also_stands_out(clean):
    m = list(clean.modules.values())[5]
    diff, name = _changed(clean, up=m.up * 30)
    found = inspect(diff)
    assert _codes(found) == {("dominant-module", name), ("stands-out", name)}
    (out,) = found.stands_out
    shares = np.array([r.share for r in found.modules if r.kind == "v_proj"])
    mad = np.median(np.abs(shares - np.median(shares)))
    assert (out.module, out.kind, out.median) == (name, "v_proj", pytest.approx(np.median(shares)))
    assert out.z == pytest.approx((out.share - np.median(shares)) / (1.4826 * mad))


def test_a_layer_that_dominates(clean):
    first = {n: replace(m, up=m.up * (5 if ".layers.2." in n else 1)) for n, m in clean.modules.items()}
    found = inspect(replace(clean, modules=first))
    names = {n for n in first if ".layers.2." in n}
    assert _codes(found) == {("dominant-layer", "layer 2"), *(("stands-out", n) for n in names)}
    assert found.by_layer[2] > 0.5
    few = WeightDiff({n: m for n, m in first.items() if ".layers.2." in n})
    assert inspect(few).signs == ()


@pytest.mark.parametrize("form", ["low", "dense"])
def test_duplicates_up_to_a_scale(clean, form):
    names = list(clean.modules)
    m = clean.modules[names[1]]
    copy = LoraFactors(3 * m.down, -0.3 * m.up, m.scale)
    near = replace(m, up=m.up + 0.02 * _factors(77).up)
    far = replace(m, up=m.up + 0.2 * _factors(78).up)
    changed = {names[4]: copy, names[7]: near, names[8]: far}
    changed[names[4]] = DenseDelta(copy.dense()) if form == "dense" else copy
    found = inspect(replace(clean, modules={**clean.modules, **changed}))
    (group,) = found.duplicates
    assert group.modules == (names[1], names[4], names[7])
    a, b = m.dense().double().flatten(), near.dense().double().flatten()
    assert group.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-9)
    assert _codes(found) == {("duplicate", names[1])}
    (sign,) = found.signs
    assert f"{names[4]}, {names[7]} (|cosine| 0.9" in sign.text


def test_modules_of_other_rows_are_not_multiplied(clean, monkeypatch):
    from weightdiff.diffs import inspection

    monkeypatch.setattr(inspection, "inner", lambda *_: pytest.fail("random modules need no product"))
    inspect(clean)


def test_signs_against_a_base(clean, weights):
    names = list(clean.modules)
    base = dict(weights)
    del base[names[0]]
    spoilt = base[names[4]]().clone()
    spoilt[0, 0] = math.nan
    base |= {
        names[1]: lambda: torch.zeros(IN, OUT),
        names[2]: lambda: weights[names[2]]() / 400,
        names[3]: lambda: torch.ones(OUT, IN, dtype=torch.int8),
        names[4]: lambda: spoilt,
    }
    found = inspect(clean, base)
    assert [(s.severity, s.code, s.module) for s in found.signs] == [
        ("error", "unknown", names[0]),
        ("error", "misshapen", names[1]),
        ("error", "base-weight", names[3]),
        ("error", "base-weight", names[4]),
        ("warning", "relative-norm", names[2]),
    ]
    assert f"out {OUT}, in {IN}; the base's weight is [{IN}, {OUT}]" in found.signs[1].text
    assert f"it has {names[1]}, …" in found.signs[0].text
    assert [r.against_base is None for r in found.modules[:6]] == [True, True, False, True, True, False]


def test_json_carries_everything(clean, weights):
    diff, _ = _nan(replace(clean, parameters={"model.norm.weight": torch.ones(3)}))
    found = inspect(diff, weights)
    value = found.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert set(value) == set(vars(found))
    broken, whole = value["modules"][5], value["modules"][6]
    assert broken["frobenius"] is None
    assert whole["frobenius"] == found.modules[6].frobenius
    assert whole["against_base"]["left"] == found.modules[6].against_base.left
    assert value["base"]["name"] == "some/base"
    assert value["by_layer"][0] == {"layer": 0, "share": found.by_layer[0]}
    assert value["by_layer"][-1]["layer"] is None
    assert value["signs"] == [vars(found.signs[0])]


def test_an_empty_diff():
    found = inspect(WeightDiff({}))
    assert (found.norm, found.modules, found.signs, found.by_layer) == (0.0, (), (), {})
    nothing = inspect(WeightDiff({"a": DenseDelta(torch.zeros(3, 3))}))
    assert _codes(nothing) == {("zero", "a")}
    assert nothing.modules[0].share == 0


def test_progress_is_told(clean):
    told = []
    inspect(clean, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 12) for i in range(1, 13)]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_base_weights_of_a_checkpoint(tiny_model, tmp_path, kind, sharded):
    from weightdiff.models.spec import model_spec

    model = tiny_model(kind)
    model.save_pretrained(tmp_path, max_shard_size="40KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors").is_file() != sharded
    found = base_weights(tmp_path)
    spec = model_spec(model)
    assert set(spec) <= set(found)
    for name, (width, height) in spec.items():
        weight = model.get_submodule(name).weight.detach()
        expected = weight.T if kind == "gpt2" else weight
        assert expected.shape == (height, width)
        assert torch.equal(found[name](), expected)
    diff = WeightDiff({name: _factors(1, 2, *size, scale=1e-2) for name, size in spec.items()})
    assert all(r.against_base for r in inspect(diff, found).modules)


def test_base_weights_that_are_not_there(tmp_path):
    with pytest.raises(FormatError, match="does not exist"):
        base_weights(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"\x08" * 20)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        base_weights(tmp_path)


def test_each_weight_is_read_once(clean, weights):
    order = []
    base = {n: (lambda n=n, read=read: (order.append(n), read())[1]) for n, read in weights.items()}
    inspect(clean, base)
    assert order == list(clean.modules)
