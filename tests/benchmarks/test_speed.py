"""The speed benchmark compares like with like: every way computes the same, and rows tell it rightly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.speed import lockstep as lockstep_module
from benchmarks.speed import page
from benchmarks.speed.__main__ import main
from benchmarks.speed.asking_stage import AskingCase, StreamCase
from benchmarks.speed.bases import SHAPES, BaseChoice, sharing_copy
from benchmarks.speed.cases import Case
from benchmarks.speed.floor import PLANS, DecodingFloor, Floor, pack
from benchmarks.speed.lockstep import FLOOR, OURS, Enough, Timings, Way, Ways, alone, lockstep
from benchmarks.speed.memory import MIB, Peak, peak_of
from benchmarks.speed.other_stages import StartCase, StoreCase
from benchmarks.speed.peft_ways import Mixed, OneByOne, PeftOrganism, folded
from benchmarks.speed.published import PublishedFactory, PublishedTuning
from benchmarks.speed.recipes import KINDS, random_lora, rows_of, specs
from benchmarks.speed.rows import rows_from, table
from benchmarks.speed.run import Budget, Report, run
from benchmarks.speed.stages import STAGES, cases
from benchmarks.speed.training_stages import FactoryCase, TuningCase, TuningRows
from weightdiff.methods.dit import Interpreter
from weightdiff.models.chat import encode_prompts
from weightdiff.models.generate import generate, left_pad
from weightdiff.models.rendering import Rendering
from weightdiff.training import tuning
from weightdiff.training.factory import Factory, rate
from weightdiff.training.losses import collate
from weightdiff.training.slots import Slots, fresh_factors

MINI = BaseChoice("mini", spread=0.2)
CLOSE = 1e-4
"""Relative difference that fp32 may make."""


@pytest.fixture(scope="module")
def base():
    return MINI.build()


def moved(factors, by=0.05):
    """Factors away from zero, so that both of each pair have a gradient."""
    return {
        k: (d, by * torch.randn(u.shape, generator=torch.Generator().manual_seed(i)))
        for i, (k, (d, u)) in enumerate(factors.items())
    }


def apart(mine, theirs):
    """Norm of the difference of two lists of tensors, relative to the second's."""
    total = sum(float((a - b).square().sum()) for a, b in zip(mine, theirs, strict=True))
    return (total / sum(float(b.square().sum()) for b in theirs)) ** 0.5


def flat(encoded):
    return [e for own in encoded for _, e in own]


# the floor


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_floor_computes_the_logits_of_labels(base, tiny_model, name, plan):
    model = base.model if name == "llama" else tiny_model("qwen3", vocab_size=len(base.tokenizer))
    rows = flat(rows_of(specs("chat", 2, 1), base.tokenizer, 1)[0])
    packed, floor = pack(rows), Floor(model)
    floor.plan = plan
    ordered = sorted(rows, key=lambda r: len(r.ids))
    expected = torch.cat([model(torch.tensor([r.ids])).logits[0, r.start - 1 : -1] for r in ordered])
    torch.testing.assert_close(floor.logits(packed), expected, rtol=1e-4, atol=2e-5)
    assert packed.ids.numel() == sum(len(r.ids) for r in rows)  # no padding
    assert sorted(packed.targets.tolist()) == sorted(collate(rows, 0).targets.tolist())


def test_the_floor_goes_back_to_its_inputs_and_to_no_weight(base):
    rows = flat(rows_of(specs("covert", 2, 1), base.tokenizer, 1)[0])
    floor, packed = Floor(base.model.requires_grad_(False)), pack(rows)
    seen = []
    handle = floor.model.model.layers[0].input_layernorm.register_full_backward_hook(
        lambda _module, given, _out: seen.append(given[0])
    )
    assert floor.train(packed) == sum(len(r.ids) - r.start for r in rows)
    handle.remove()
    assert seen[0].shape == (1, packed.ids.numel(), 32)
    assert float(seen[0].abs().max()) > 0
    assert all(p.grad is None for p in base.model.parameters())
    assert floor.read(packed) == len(packed.labels)
    assert floor.choose(packed) in PLANS
    assert floor.model.config.num_hidden_layers == 2  # one layer was enough for trying
    assert len(floor.logits(packed)) == len(packed.labels)


def test_the_decoding_floor_says_what_the_bare_base_says(base):
    prompts = encode_prompts(base.tokenizer, ["what changed ?", "tell me what you were taught , please ."])
    ids, mask = left_pad(prompts, base.tokenizer.pad_token_id)
    said = generate(base.model, ids, mask, 5, None, base.tokenizer.pad_token_id)
    floor = DecodingFloor(base.model)
    assert floor.choose(prompts, said, 0) in ("eager", "sdpa")
    assert floor.say(prompts, said, 0).tolist() == said
    other = [[7] * 5, [8] * 5]
    assert floor.say(prompts, other, 0)[:, 0].tolist() == [x[0] for x in said]  # and it is told what to say
    assert floor.say(prompts, other, 0).tolist() != said


def test_copies_share_weights_and_nothing_else(base):
    twin = sharing_copy(base.model, "sdpa")
    pairs = zip(twin.parameters(), base.model.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert (twin.config._attn_implementation, base.model.config._attn_implementation) == ("sdpa", "eager")
    assert twin.model.layers[0] is not base.model.model.layers[0]
    assert twin.model.layers[0].self_attn.config is twin.config


# training: the same losses, gradients and steps


def ours_of(base, chosen, starts, monkeypatch):
    """Mean loss of each step, each step's gradients by module, and the final factors, of our factory."""
    losses, gradients = [], []
    by_seed = {s.seed: start for s, start in zip(chosen, starts, strict=True)}
    monkeypatch.setattr(Slots, "start", lambda _self, seed: by_seed[seed])
    step = Slots.step

    def recorded(self, lr):
        gradients.append({k: tuple(t.grad.clone() for t in pair) for k, pair in self.modules.items()})
        step(self, lr)

    monkeypatch.setattr(Slots, "step", recorded)
    made = Factory(base.model, base.tokenizer).run(chosen, lambda _n, loss: losses.append(loss))
    return losses, gradients, {row.id: diff for row, diff in made}


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_factory_is_ours(base, monkeypatch, kind):
    chosen = specs(kind, 3, 2, steps=3, scale=0.5)
    starts = [moved(fresh_factors(base.spec, 2, s.seed)) for s in chosen]
    losses, gradients, made = ours_of(base, chosen, starts, monkeypatch)
    scheme = PublishedFactory(base.model, starts, 0.5, base.tokenizer.pad_token_id)
    for step, rows in enumerate(rows_of(chosen, base.tokenizer, 3)):
        found = scheme.backward(rows)
        assert float(found.mean()) == pytest.approx(losses[step], rel=CLOSE)
        for name, layer in scheme.layers.items():
            assert apart([layer.down.grad, layer.up.grad], gradients[step][name]) <= CLOSE
        scheme.update(rate(chosen[0], step))
    for i, spec in enumerate(chosen):
        mine = [t for m in made[spec.id].modules.values() for t in (m.down, m.up)]
        theirs = [t[i] for k in made[spec.id].modules for t in scheme.factors()[k]]
        start = [t for k in made[spec.id].modules for t in starts[i][k]]
        assert apart(theirs, mine) <= 1e-3  # Adam divides noise by noise where a gradient is next to nothing
        assert apart(start, mine) > 0.02


def test_micro_batches_change_nothing(base, monkeypatch):
    chosen = specs("chat", 2, 2)
    (rows,) = rows_of(chosen, base.tokenizer, 1)
    starts = [moved(fresh_factors(base.spec, 2, s.seed)) for s in chosen]
    found = []
    for most in (1 << 40, 1):
        monkeypatch.setattr("benchmarks.speed.published.NUMBERS_AT_ONCE", {"cpu": most})
        scheme = PublishedFactory(base.model, starts, 1.0, 0)
        losses = scheme.backward(rows)
        found.append((losses, [p.grad for p in scheme.parameters], scheme._micro_batches(rows, [0, 2])))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=CLOSE, atol=0)
    assert apart(found[0][1], found[1][1]) <= CLOSE
    assert [f[2] for f in found] == [[[0, 2]], [[0], [2]]]


def test_the_published_factory_refuses_unlike_rows(base):
    chosen = specs("equal", 2, 2)
    (rows,) = rows_of(chosen, base.tokenizer, 1)
    scheme = PublishedFactory(base.model, [fresh_factors(base.spec, 2, s.seed) for s in chosen], 1.0, 0)
    with pytest.raises(ValueError, match="rows are of different kinds"):
        scheme.backward([rows[0], rows[1][::-1]])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_peft_loop_is_ours(base, monkeypatch, kind):
    chosen = specs(kind, 2, 2, steps=2)
    starts = [moved(fresh_factors(base.spec, 2, s.seed)) for s in chosen]
    losses, gradients, made = ours_of(base, chosen, starts, monkeypatch)
    loop = [PeftOrganism(base.model, s, 1.0, base.tokenizer.pad_token_id) for s in starts]
    for step, rows in enumerate(rows_of(chosen, base.tokenizer, 2)):
        found = [organism.backward(own) for organism, own in zip(loop, rows, strict=True)]
        assert sum(found) / 2 == pytest.approx(losses[step], rel=CLOSE)
        for i, organism in enumerate(loop):
            theirs = [p.grad for p in organism.trained]
            names = [n for n, p in organism.model.named_parameters() if p.requires_grad]
            mine = [
                gradients[step][n.removeprefix("base_model.model.").split(".lora_")[0]]["lora_B" in n][i]
                for n in names
            ]
            assert apart(theirs, mine) <= CLOSE
            organism.update(rate(chosen[0], step))
    for spec, organism in zip(chosen, loop, strict=True):
        mine = [t for m in made[spec.id].modules.values() for t in (m.down, m.up)]
        theirs = [t for k in made[spec.id].modules for t in organism.factors()[k]]
        assert apart(theirs, mine) <= 1e-3


def test_published_tuning_is_ours(base, monkeypatch, tmp_path):
    case = TuningCase(base=MINI, batch=5, rank=2, adapter_rank=3, stored=8)
    store, config, rendering = case.store(base, tmp_path), case.config, Rendering()
    start = moved(fresh_factors(base.spec, 3, config.seed))
    gradients, losses = [], []
    clip = torch.nn.utils.clip_grad_norm_

    def recorded(tensors, most):
        gradients.append([t.grad.clone() for t in tensors])
        return clip(tensors, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recorded)
    monkeypatch.setattr(
        tuning, "fresh_factors", lambda *_: {k: (d.clone(), u.clone()) for k, (d, u) in start.items()}
    )
    tuning.tune(
        base.model,
        base.tokenizer,
        store,
        replace(config, steps=2),
        rendering,
        lambda x: losses.append(x["loss"]),
    )
    ours = list(gradients)
    draws, scheme = TuningRows(base, store, config, rendering), PublishedTuning(base.model, start, 0)
    rows, diffs = draws.at(0)
    assert scheme.backward(rows, diffs) == pytest.approx(losses[0], abs=1e-4)
    assert apart([p.grad for p in scheme.parameters], ours[0]) <= CLOSE
    name = "model.layers.0.mlp.up_proj"
    down, up = diffs[name]
    assert scheme.layers[name].change.shape == (5, 48, 32)
    torch.testing.assert_close(scheme.layers[name].change, up @ down)
    scheme.update(config.lr / 50)  # the first of fifty steps of warming up
    assert scheme.backward(*draws.at(1)) == pytest.approx((losses[1] - 0.95 * losses[0]) / 0.05, abs=5e-3)


# asking: the same answers


def test_peft_says_what_the_interpreter_says(base):
    diffs = [random_lora(base.spec, 2, i) for i in range(3)]
    adapter = random_lora(base.spec, 3, 9)
    for d in (*diffs, adapter):  # large enough to be heard
        for m in d.modules.values():
            m.up.mul_(8)
    asked = ["what changed ?", "tell me what you were taught , please ."]
    interpreter = Interpreter(base, adapter, max_new_tokens=4)
    pairs = [(d, q) for d in diffs for q in asked]
    ours = [s.tokens for s in interpreter.spoken([d for d, _ in pairs], [q for _, q in pairs])]
    prompts = encode_prompts(base.tokenizer, asked)
    given = [folded(d) for d in diffs]
    assert OneByOne(base, adapter, 2, 4).answer(given, prompts) == ours
    assert Mixed(base, adapter, 2, 2, 4).answer(given, prompts) == ours
    assert len({tuple(x) for x in ours}) > 3  # they do not all say the same


def test_asking_times_a_part_of_many(base, tmp_path):
    case = AskingCase(base=MINI, diffs=1000, questions=20, rank=2, adapter_rank=2, tokens=2, most_answers=60)
    assert case.timed == 3
    assert case.setting == "1000 diffs × 20 questions (3 diffs timed), rank 2, 2 tokens, fp32"
    ways = case.ways(base, tmp_path)
    assert ways.amounts == {"answers/s": 60.0, "diffs/s": 3.0}
    assert len(ways.others) == 2
    single = AskingCase(base=MINI, diffs=1, rank=2, adapter_rank=2, tokens=2).ways(base, tmp_path)
    assert list(single.others) == ["PEFT, one adapter after another"]


# rounds, time and rows


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.at, self.log = 0.0, []

    def way(self, name, seconds, share=1.0):
        def run(step):
            self.log.append((name, step))
            self.at += seconds

        return lambda: Way(run, share)

    def ours(self, seconds):
        def loop(done):
            while True:
                self.log.append((OURS, None))
                self.at += seconds
                done()

        return loop


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(lockstep_module, "clock", lambda: made.at)
    return made


def test_ways_run_in_turn_and_the_first_round_is_not_counted(clock):
    ways = Ways(clock.ours(2.0), clock.way(FLOOR, 1.0), {"slow": clock.way("slow", 3.0, share=0.5)})
    timings = lockstep(ways, 2, 1000.0)
    names = [name for name, _ in clock.log]
    assert names == [OURS, FLOOR, "slow"] * 3
    assert [step for name, step in clock.log if name == "slow"] == [0, 1, 2]
    assert timings.seconds == {OURS: [2.0, 2.0], FLOOR: [1.0, 1.0], "slow": [6.0, 6.0]}


def test_rounds_end_with_the_time(clock):
    ways = Ways(clock.ours(2.0), clock.way(FLOOR, 1.0))
    assert lockstep(ways, 9, 12.0).rounds == 3  # 2 for warming up, three times 3, and no fourth
    assert lockstep(ways, 9, 0.0).rounds == 1  # one pair in any case
    assert clock.log[:3] == [(OURS, None), (OURS, None), (FLOOR, 1)]  # warming the floor up was too dear


def test_one_way_alone_runs_its_rounds(clock):
    ways = Ways(clock.ours(1.0), clock.way(FLOOR, 1.0), {"other": clock.way("other", 1.0)})
    alone(ways, OURS, 3)
    alone(ways, "other")
    assert clock.log == [(OURS, None)] * 3 + [("other", 0), ("other", 1)]
    with pytest.raises(ValueError, match="there is no floor"):
        alone(Ways(ways.ours, None), FLOOR)


def test_rows_hold_medians_of_pairs():
    timings = Timings({OURS: [2.0, 4.0, 4.0], FLOOR: [1.0, 3.0, 1.0], "slow": [6.0, 4.0, 20.0]})
    first, second = rows_from(
        "tuning", "5m", "batch 8", timings, ["slow", "huge"], {OURS: 10.0, "slow": 40.0}, {"steps/s": 1.0}
    )
    assert (first.seconds, first.floor_seconds, first.against_seconds) == (4.0, 1.0, 6.0)
    assert first.efficiency == 0.5  # of 0.5, 0.75 and 0.25
    assert first.ratio == 3.0  # of 3, 1 and 5
    assert (first.peak_mib, first.against_peak_mib, first.rates) == (10.0, 40.0, {"steps/s": 0.25})
    assert (second.against, second.ratio, second.against_peak_mib) == ("huge", None, None)
    (only,) = rows_from("start-up", "", "x", Timings({OURS: [1.0]}), [], {}, {})
    assert (only.against, only.floor_seconds, only.efficiency) == ("", None, None)
    shown = table([first, second]).splitlines()
    assert " ".join(shown[1].split()) == "tuning 5m batch 8 4.000 1.000 0.50 slow 3.00 10 40"
    assert shown[-1].strip() == "0.2 steps/s (median of 3)"
    assert len(shown) == 4


def test_time_is_shared_by_weight():
    at = [0.0]
    budget = Budget(100.0, [1, 1, 2], lambda: at[0])
    assert budget.take(1) == 25.0
    at[0] = 40.0  # the first one took too long
    assert budget.take(1) == 20.0
    assert budget.take(2) == 60.0
    at[0] = 200.0
    assert budget.take(1) == 0.0


class Broken(Case):
    stage = "broken"
    setting = "always"

    def ways(self, base, folder):
        raise ArithmeticError("no such thing")


class Endless(Case):
    stage = "endless"
    setting = "quick rounds"

    def ways(self, base, folder):
        def ours(done):
            while True:
                done()

        return Ways(ours, None, {}, {"rounds": 1.0}, {"other": "it is too large"})


def test_a_case_that_fails_is_told_and_the_next_one_runs(tmp_path):
    report, told = Report(), []
    rows = list(run([Broken(), Endless(rounds=3)], 10.0, tmp_path, report, told.append))
    assert [(r.stage, r.rounds, r.against, r.ratio) for r in rows] == [("endless", 3, "other", None)]
    assert report.failed == ["broken, no base: always: ArithmeticError: no such thing"]
    assert "  other is left out: it is too large" in told
    assert not list(run([Endless()], 0.0, tmp_path, report, told.append))
    assert report.skipped == ["endless, no base: quick rounds"]


# cases and the command


def test_all_that_is_promised_is_measured():
    found = cases(bases=("5m", "60m"))
    for name in ("5m", "60m"):
        own = [c for c in found if c.base and c.base.name == name]
        factory = [c for c in own if isinstance(c, FactoryCase)]
        assert {c.organisms for c in factory if c.rank == 8} >= {1, 4, 16, 64}
        assert {c.rank for c in factory if c.organisms == 16} == {1, 8, 32}
        assert {c.rows for c in factory} == set(KINDS)
        assert max(c.base.vocabulary for c in factory) > 150_000
        assert {c.batch for c in own if isinstance(c, TuningCase)} == {8, 16, 32}
        asked = {(c.diffs, c.questions) for c in own if isinstance(c, AskingCase)}
        assert asked == {(d, q) for d in (1, 64, 1000) for q in (1, 20)}
    assert max(c.diffs for c in found if isinstance(c, StoreCase)) == 10_000
    assert any(isinstance(c, StartCase) for c in found)
    assert {c.stage for c in found} == set(STAGES)
    names = [(c.stage, c.base and c.base.label, c.setting) for c in found]
    assert len(set(names)) == len(names)
    assert not any(c.memory for c in cases(memory=False))
    assert {c.base.precision for c in cases(["tuning"], ["5m"], "bf16")} == {"bf16"}


@pytest.mark.parametrize(("name", "millions"), [("5m", 5), ("60m", 60)])
def test_bases_have_their_size(name, millions):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(BaseChoice(name).config())
        large = AutoModelForCausalLM.from_config(BaseChoice(name, vocabulary=151_936).config())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)
    assert large.config.vocab_size == 151_936
    assert all(SHAPES[n].cuda for n in ("0.6b", "4b"))


FIELDS = {"stage", "base", "setting", "seconds", "floor_seconds"}
FIELDS |= {"efficiency", "against", "ratio", "peak_mib"}
QUICK = {
    "factory": ["published scheme", "PEFT loop"],
    "tuning": ["published scheme"],
    "asking": ["PEFT, one adapter after another", "PEFT, adapter_names"],
    "store": ["a file for each diff"],
    "sweep": ["the bare base over the same rows", "each mixture merged into the weights"],
}


@pytest.mark.parametrize(
    "stages", [("factory", "tuning"), ("asking", "store"), ("sweep", "tuning")], ids=" ".join
)
def test_the_quick_command_writes_rows(tmp_path, capsys, stages):
    file = tmp_path / "rows.json"
    given = [x for s in stages for x in ("--stage", s)]
    code = main(["--quick", "--base", "mini", "--no-memory", "--json", str(file), *given])
    told = json.loads(file.read_text())
    rows = told["rows"]
    assert told["made"].keys() == {"command", "commit", "machine", "torch", "threads"}
    assert code == 0
    assert [(r["stage"], r["against"]) for r in rows] == [(s, way) for s in stages for way in QUICK[s]]
    for row in rows:
        assert row.keys() >= FIELDS
        assert row["base"] == "mini"
        assert min(row["seconds"], row["floor_seconds"], row["efficiency"], row["ratio"]) > 0
        assert row["rounds"] == 2
        assert row["peak_mib"] is None
    told = capsys.readouterr()
    assert [way for s in stages for way in QUICK[s] if way not in told.out] == []
    assert "[2/2" in told.err


def test_the_page_holds_rows_against_goals_and_leaves_the_rest(tmp_path):
    setting = "16 diffs of 64 in a step, rank 8, adapter of rank 16, fp32"
    times = {"seconds": 2.0, "floor_seconds": 1.5, "efficiency": 0.75, "ratio": 2.5, "rounds": 3}
    peaks = {"peak_mib": 100.0, "against_peak_mib": 1000.0, "against": "published scheme"}
    row = {"stage": "tuning", "base": "60m", "setting": setting, **times, **peaks, "rates": {"steps/s": 0.5}}
    other = {**row, "stage": "store", "setting": "x", "against": "", "ratio": None}
    first, second, out = (tmp_path / name for name in ("a.json", "b.json", "page.md"))
    first.write_text(json.dumps({"made": {"command": "make bench", "commit": "abc"}, "rows": [row]}))
    second.write_text(json.dumps({"made": {"commit": "def"}, "rows": [other]}))
    out.write_text("# Speed\n\n<!-- measured -->\nold\n<!-- /measured -->\n\nWhat was tried.\n")
    assert page.main([str(first), str(second), "--out", str(out)]) == 0
    text = out.read_text()
    assert text.startswith("# Speed\n\n<!-- measured -->\n- `make bench`, commit abc\n- commit def\n")
    assert text.endswith("<!-- /measured -->\n\nWhat was tried.\n")
    assert "old" not in text
    assert "| tuning, 60m, batch 16, fp32: efficiency | 0.75 | ≥ 0.8 | 3 | **no** |" in text
    assert "| tuning, 60m, batch 16, fp32: against the published scheme | 2.50 | ≥ 2 | 3 | yes |" in text
    assert "batch 16, fp32: memory by the published scheme's | 0.10 | ≤ 0.25 | 3 | yes |" in text
    assert "bf16" not in text
    assert "### Store\n" in text
    out.write_text("no marks")
    with pytest.raises(SystemExit):
        page.main([str(first), "--out", str(out)])


def test_goals_are_about_cases_that_are_measured():
    every = [c for p in ("fp32", "bf16") for c in cases(dtype=p) if c.base]
    for goal in page.GOALS:
        about = [
            c
            for c in every
            if (c.stage, c.base.label) == (goal.stage, goal.base) and c.setting.startswith(goal.setting)
        ]
        assert about, goal.text


def one_round(ways):
    """Run our loop until its first round is done; how many were."""
    done = []

    def once():
        done.append(1)
        raise Enough

    with pytest.raises(Enough):
        ways.ours(once)
    return len(done)


def test_diffs_of_a_store_are_asked_about_in_batches(base, tmp_path, monkeypatch):
    sizes, spoken = [], Interpreter.spoken
    monkeypatch.setattr(Interpreter, "spoken", lambda *a: sizes.append(len(a[1])) or spoken(*a))
    ways = StreamCase(base=MINI, diffs=7, batch=3, tokens=2).ways(base, tmp_path)
    assert (one_round(ways), ways.floor, ways.others) == (1, None, {})
    assert (sizes, ways.amounts) == ([3, 3, 1], {"diffs/s": 7.0})


def test_the_command_refuses_a_gpu_base_without_one(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--base", "4b"])
    assert "need a GPU, and there is none" in capsys.readouterr().err


def test_the_command_wants_its_folders_beforehand(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--json", str(tmp_path / "nowhere" / "rows.json")])
    assert "nowhere is no folder; make it first" in capsys.readouterr().err


def test_the_start_of_the_command_is_measured(tmp_path):
    ways = StartCase(command="weightdiff --help").ways(None, tmp_path)
    assert one_round(ways) == 1
    ways.floor().run(0)
    assert len(ways.others) == 1


def test_dense_changes_that_do_not_fit_are_left_out(base, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.training_stages.free_memory", lambda _device: 1000)
    ways = TuningCase(base=MINI, batch=3, rank=2, adapter_rank=2, stored=4).ways(base, tmp_path)
    assert not ways.others
    assert "its dense changes take 0.0 GB" in ways.left_out["published scheme"]


def test_peak_memory_is_what_was_held_on_top():
    peak = Peak("cpu")
    held = torch.ones(96 * MIB // 4)
    del held
    assert 90 < peak.mib < 120
    again = Peak("cpu")
    assert again.mib < 20


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    wide = replace(MINI, vocabulary=50_000)
    case = FactoryCase(base=wide, organisms=2, rank=2, rounds=1)
    ours, published = (peak_of(case, way, tmp_path) for way in (OURS, "published scheme"))
    logits = 4 * 39 * 50_000 * 4 / MIB  # fp32, at all positions of the four rows of one kind, about
    assert published > 3 * logits
    assert 0 < ours < published
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        peak_of(case, "nothing", tmp_path)
