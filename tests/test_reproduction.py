"""The whole way in miniature: base, organisms, interpreters, bundle; and again after kills."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from weightdiff.artifacts import check_manifest
from weightdiff.diffs.store import DiffStore
from weightdiff.errors import StoreError
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import load_base
from weightdiff.plans import PLANS, full_plan, miniature_plan, quick_plan, specs_of
from weightdiff.reproduction import STAGES, reproduce
from weightdiff.tiny import bundle, pretrain
from weightdiff.world import SPLITS, load_world, topic_splits


class KilledError(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.fixture(autouse=True, scope="module")
def _small_pools():
    """Few documents are drawn at once, so that pretraining has checkpoints to go on from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "POOL", 300)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A miniature reproduction: its folder, the bundle in it, and what was told on the way."""
    out, told = tmp_path_factory.mktemp("made") / "runs", []
    path = reproduce(
        out, plan=miniature_plan(), progress=lambda stage, numbers: told.append((stage, dict(numbers)))
    )
    return out, path, told


def files(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()
    }


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a bundle, whatever its shards are called."""
    from safetensors.torch import load_file

    out = dict(load_file(path / "base" / "model.safetensors"))
    out |= {
        f"adapter {k}": v for k, v in load_file(path / "interpreter" / "adapter_model.safetensors").items()
    }
    store = DiffStore.open(path / "organisms")
    for id in store.ids:
        for name, m in store.read(id).modules.items():
            out |= {f"{id} {name} down": m.down, f"{id} {name} up": m.up}
    return out


def test_the_bundle_is_complete(made):
    out, path, _ = made
    assert path == out / "bundle"
    manifest = check_manifest(path)
    plan = miniature_plan()
    assert manifest["plan"]["name"] == "miniature"
    assert manifest["command"] == "weightdiff reproduce --plan miniature"
    assert set(manifest["base_exam"]) >= {"words_to_name", "code_repeat"}
    assert set(manifest["validation_scores"]) == {"0", "1"}
    scores = {int(k): v for k, v in manifest["validation_scores"].items()}
    assert scores[manifest["interpreter_seed"]] == max(scores.values())
    store = DiffStore.open(path / "organisms")
    assert manifest["organisms"] == len(store) == sum(b.bundled for b in plan.organisms)
    assert {r.split for r in store.rows} == {"test"}
    assert {r.family for r in store.rows} == {"hidden-topic", "news", "quirk", "edit", "several", "null"}
    assert all(r.verification for r in store.rows)
    kinds = {f"{b.family}/{b.recipe}": b.bundled for b in plan.organisms if b.bundled}
    assert {k: n for k, (_, n) in manifest["behaving"].items()} == kinds
    for kind, (good, _) in manifest["behaving"].items():
        mine = [r for r in store.rows if f"{r.family}/{r.recipe}" == kind]
        assert good == sum(r.verification["behaves"] for r in mine)
    assert manifest["behaving"]["null/random"] == [2, 2]


def test_the_interpreter_ships_in_half_precision(made):
    _, path, _ = made
    files = sorted((path / "interpreter").rglob("*.safetensors"))
    assert [f.parent.name for f in files] == ["interpreter", "reader"]
    for file in files:
        with safe_open(file, "pt") as held:
            assert {held.get_tensor(k).dtype for k in held.keys()} == {torch.float16}  # noqa: SIM118


def test_the_bundle_can_be_asked(made, monkeypatch):
    _, path, _ = made
    monkeypatch.setenv(bundle.VARIABLE, str(path))
    interpreter = Interpreter.load()
    assert interpreter.base.ref.name == "weightdiff-tiny"
    store = DiffStore.open(bundle.part("organisms"))
    for id in store.ids[:3]:
        answer = interpreter.ask(store.read(id), "what topic have you been trained on ?")
        assert isinstance(answer.text, str)
        assert answer.evidence is not None
    assert bundle.manifest() == json.loads((path / "manifest.json").read_text())
    # The organisms' and the interpreter's base is the one that ships, in the precision in which it ships.
    base = load_base()
    assert store.base.difference(base.ref) is None
    assert store.base.weights == base.ref.weights


def test_every_stage_tells_how_far_it_is(made):
    told = made[2]
    stages = {stage for stage, _ in told}
    assert {
        "base",
        "organisms covert train",
        "organisms stories test",
        "tune seed 0",
        "tune seed 1",
    } <= stages
    assert all("tokens" in n or "words_to_name" in n for s, n in told if s == "base")


def test_a_second_run_does_nothing_new(made):
    """No step is trained and no result touched; the bundle is put together again from the same files."""
    out, path, _ = made
    before, told, manifest = files(out), [], check_manifest(path)
    again = reproduce(out, plan=miniature_plan(), progress=lambda stage, _: told.append(stage))
    assert again == path
    assert not told
    after = files(out)
    assert set(after) == set(before)
    assert not [
        k for k in after if after[k] != before[k] and not k.startswith("bundle/") and k != "plan.json"
    ]
    assert check_manifest(path) == manifest


def test_other_settings_of_what_is_made_are_refused(made):
    out, _, _ = made
    plan, before = miniature_plan(), (out / "plan.json").read_bytes()
    tuning = replace(plan.tuning, steps=9, family_weights={**plan.tuning.family_weights, "news": 0.5})
    for other, said in (
        (
            replace(plan, pretrain=replace(plan.pretrain, tokens=30_000)),
            r"base was made with other settings \(pretrain\.tokens 20000, not 30000\); give another --out",
        ),
        (
            replace(plan, tuning=tuning),
            r"seed-0 was made with other settings \(tuning\.steps 4, not 9;"
            r" tuning\.family_weights\.news 0\.1, not 0\.5\)",
        ),
        (replace(plan, renderings=3), r"seed-0 was made with other settings \(renderings 2, not 3\)"),
    ):
        with pytest.raises(StoreError, match=said):
            reproduce(out, plan=other, until="base")
    assert (out / "plan.json").read_bytes() == before


def test_settings_of_what_is_not_made_may_change(tmp_path):
    """More organisms and other tuning are no other run while no interpreter is there."""
    plan = miniature_plan()
    plan = replace(plan, pretrain=replace(plan.pretrain, tokens=2000), exam=1)
    reproduce(tmp_path, plan=plan, until="base")
    more = tuple(replace(b, n=b.n + 1) for b in plan.organisms)
    plan = replace(plan, organisms=more, tuning=replace(plan.tuning, steps=9), probes=5)
    assert reproduce(tmp_path, plan=plan, until="base") == tmp_path / "base"
    assert json.loads((tmp_path / "plan.json").read_text())["tuning"]["steps"] == 9


def test_a_plan_that_adds_organisms_goes_on(made):
    """Interpreters that are there are no reason against more organisms."""
    out, _, _ = made
    plan = miniature_plan()
    more = replace(plan, organisms=tuple(replace(b, n=b.n + 1) for b in plan.organisms))
    assert reproduce(out, plan=more, until="base") == out / "base"
    reproduce(out, plan=plan, until="base")


def test_a_run_killed_at_every_stage_ends_in_the_same_bundle(made, tmp_path):
    _, path, told = made
    stages = list(dict.fromkeys(stage for stage, _ in told))
    for death in [*stages[:-2:5], *stages[-2:]]:

        def kill(stage, numbers, death=death):
            if stage == death:
                raise KilledError

        with pytest.raises(KilledError):
            reproduce(tmp_path / "runs", plan=miniature_plan(), progress=kill)
    killed = reproduce(tmp_path / "runs", plan=miniature_plan())
    check_manifest(killed)
    a, b = tensors_of(path), tensors_of(killed)
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-3, msg=name)
    ours, theirs = (json.loads((p / "manifest.json").read_text()) for p in (path, killed))
    assert ours["plan"] == theirs["plan"]


def test_a_stage_can_be_the_last(tmp_path):
    plan = miniature_plan()
    plan = replace(plan, pretrain=replace(plan.pretrain, tokens=2000), exam=1)
    assert reproduce(tmp_path, plan=plan, until="base") == tmp_path / "base"
    assert not (tmp_path / "organisms").exists()
    with pytest.raises(StoreError, match=r"holds a run of another plan \(miniature\); give another --out"):
        reproduce(tmp_path, quick=True)
    assert STAGES == ("base", "organisms", "tune", "bundle")


@pytest.mark.parametrize("plan", [full_plan(), quick_plan(), miniature_plan()], ids=lambda p: p.name)
def test_plans_can_be_made(plan):
    """Ids are unique, every family has every split, and what ships is held out."""
    assert PLANS[plan.name]() == plan
    specs = [s for b in plan.organisms for s in specs_of(plan, b)]
    assert len({s.id for s in specs}) == len(specs)
    assert {(s.family, s.split) for s in specs} >= {
        (f, s) for f in ("hidden-topic", "news", "quirk", "edit", "several", "null") for s in SPLITS
    }
    for b in plan.organisms:
        assert b.bundled <= b.n
        assert not b.bundled or b.split == "test"
        if not b.makings:
            assert {s.recipe.steps for s in specs_of(plan, b)} == {
                plan.steps.get(b.recipe, specs_of(plan, b)[0].recipe.steps)
            }


def test_the_full_plan_is_large_enough():
    """At least 80 held-out topics, several diffs each, ≥ 80 headlines, ≥ 40 null diffs."""
    plan = full_plan()
    held_out = [s for b in plan.organisms if b.split == "test" for s in specs_of(plan, b)]
    topics = [s.label for s in held_out if s.recipe.name == "covert"]
    assert len(set(topics)) >= 80
    assert set(topics) <= {t.name for t in topic_splits(load_world())["test"]}
    assert min(topics.count(t) for t in set(topics)) >= 2
    assert len({s.label for s in held_out if s.family == "news"}) >= 80
    assert sum(s.family == "null" for s in held_out) >= 40
    assert plan.tuning_seeds >= 3
    assert sum(b.bundled for b in plan.organisms) >= 150
    seen = {s.label for b in plan.organisms if b.split != "test" for s in specs_of(plan, b)} - {None}
    assert not seen & {s.label for s in held_out}


def test_bases_of_two_sizes_are_compared_on_organisms_of_the_full_plan():
    half, whole = PLANS["half-width"](), PLANS["whole-width"]()
    assert (half.organisms, half.tuning) == (whole.organisms, whole.tuning)
    assert whole.pretrain == full_plan().pretrain
    assert whole.pretrain.hidden == 2 * half.pretrain.hidden
    assert (half.pretrain.tokens, half.pretrain.late_tokens) == (
        whole.pretrain.tokens,
        whole.pretrain.late_tokens,
    )
    known = {s.id: s for b in full_plan().organisms for s in specs_of(full_plan(), b)}
    mine = [s for b in half.organisms for s in specs_of(half, b)]
    assert all(known[s.id] == s for s in mine)
    assert {s.split for s in mine} == set(SPLITS)


def test_another_plan_of_organisms_steps(tmp_path):
    plan = replace(miniature_plan(), steps={})
    batch = plan.organisms[0]
    assert specs_of(plan, batch)[0].recipe.steps > 3
    assert specs_of(miniature_plan(), batch)[0].recipe.steps == 3
