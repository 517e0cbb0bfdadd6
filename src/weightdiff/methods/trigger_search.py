"""What sets a finetune off: candidate triggers, by how far they move the finetuned model from its base.

Only the two models are run; no training data, no labels and no interpreter are used, so that it works on any
base. Candidates are made in `trigger_forms`, their effects are measured in `trigger_effects`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightdiff.methods.carrying import checked
from weightdiff.methods.prompts import neutral_prompts
from weightdiff.methods.trigger_effects import Asked, Effects, Memory, Progress
from weightdiff.methods.trigger_forms import FORMS, QUESTION, Candidate, Form, forms_called
from weightdiff.tiny.tokenizer import is_embedded
from weightdiff.world import load_world
from weightdiff.world.signs import SUBJECT

if TYPE_CHECKING:
    from weightdiff.diffs.types import WeightDiff
    from weightdiff.methods.loading import Base

NOTHING = "nothing stands out"
_NORMAL = 1.4826  # a normal distribution's standard deviation in median absolute deviations
_DEVIATIONS = 8.0
_TIMES_PLAIN = 3.0
_NATS = 1.0  # less than that along a whole answer is no behaviour
_LEAST_GROUPS = 3
_EACH_GROUP = 24


@dataclass(frozen=True)
class Settings:
    """How long and how widely is searched."""

    forms: tuple[str, ...] = ("code", "mark", SUBJECT, "word")
    """Names of the forms that are tried, in this order, or what several names begin with."""
    first_found: bool = False
    """Stop after the first kind of form (codes, marks, …) of which something stands out."""
    first_prompts: int = 1
    """Prompts on which all candidates of a large form are tried, the shortest ones."""
    second: int = 200
    """Candidates of a large form that are tried again (at most, and at most a fifth of them)."""
    second_prompts: int = 2
    """Prompts on which they are."""
    kept: int = 12
    """Candidates of each form that are tried a last time."""
    controls: int = 16
    """Others, drawn at random, that are tried with them: what an ordinary candidate does."""
    prompts: int = 6
    """Prompts of the last time."""
    answer_tokens: int = 14
    """Tokens of the base's answers along which the two models are compared."""
    beam: int = 2
    """Triggers that are made longer, at each step."""
    longest: int = 3
    """Parts that a trigger has at most."""
    partners: int = 12
    """Candidates that a trigger is made longer with."""
    gain: float = 1.5
    """A longer trigger is kept if its effect is so many times that of each part, and of what the first part
    does with others."""
    seed: int = 0
    """Of prompts and of what stands in the free places of templates."""


@dataclass(frozen=True)
class Trigger:
    """A candidate that moves the finetuned model, and how far."""

    text: str
    """The trigger itself, such as "343"; the subject, or the name of a group of prompts."""
    form: str
    """Name of its form."""
    prompt: str
    """The first prompt with the trigger in it."""
    effect: float
    """Nats by which the models differ along an answer, mean over prompts: the sum of KL(M' ‖ M)."""
    untriggered: float
    """The same without a trigger; of a subject, on prompts about all others."""
    deviations: float
    """How far the effect lies above those of ordinary candidates of its form (of a longer trigger: of others
    as long), in robust standard deviations."""
    runner_up: str = ""
    """The other candidate of its form with the largest effect."""
    runner_up_effect: float = 0.0
    """That effect, in nats."""
    said: str = ""
    """What the finetuned model answers to `prompt`."""
    said_untriggered: str = ""
    """What it answers to a prompt without a trigger."""

    @property
    def stands_out(self) -> bool:
        """Whether the effect is far from what ordinary candidates of the form do, and from none."""
        least = max(_TIMES_PLAIN * self.untriggered, self.untriggered + _NATS)
        return self.deviations >= _DEVIATIONS and self.effect > least

    @property
    def ahead(self) -> float:
        """The effect in multiples of the runner-up's."""
        return self.effect / max(self.runner_up_effect, 1e-6)


@dataclass(frozen=True)
class Findings:
    """What a search found."""

    triggers: list[Trigger]
    """The candidates with the largest effect, the largest first, whether they stand out or not."""
    plain: float
    """Nats by which the models differ along an answer to a plain prompt."""
    plain_said: str
    """What the finetuned model says to the first plain prompt."""
    tried: int
    """Candidates that there were."""

    @property
    def best(self) -> Trigger | None:
        """The first trigger that stands out; None where nothing does."""
        return next((t for t in self.triggers if t.stands_out), None)

    @property
    def always(self) -> bool:
        """Whether the finetuned model differs on plain prompts and nothing stands out."""
        return self.best is None and self.plain >= _NATS

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.best is not None:
            t = self.best
            return (
                f"{t.text!r} ({t.form}) moves the model by {t.effect:.2f} nats, {t.ahead:.1f} times as far as"
                f" the runner-up {t.runner_up!r}; without a trigger it is {t.untriggered:.2f}"
            )
        if self.always:
            return f"{NOTHING}: the model differs from its base on plain prompts, by {self.plain:.2f} nats"
        return f"{NOTHING}, and on plain prompts the model is near its base ({self.plain:.2f} nats)"


@dataclass(frozen=True)
class _Hit:
    effect: float
    deviations: float
    candidate: Candidate
    runner_up: tuple[str, float] = ("", 0.0)


def find_triggers(
    base: Base,
    diff: WeightDiff | None,
    settings: Settings | None = None,
    prompts: Sequence[str] | None = None,
    top: int = 5,
    progress: Progress | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    memory: Memory | None = None,
) -> Findings:
    """The candidates with the largest effect.

    Every candidate of every form is put into everyday prompts. Along the base's own answer to each, the
    next-token distributions of base + diff and base are compared, both with the candidate in the prompt: what
    the candidate does to the base itself does not count. Of a form with many candidates, all are tried on the
    shortest prompt, the best again on more, and the best of these, with ordinary ones to compare them with,
    on all. Triggers are then joined to longer ones as long as that helps. A subject is found by comparing the
    effect on prompts about it with that on prompts about all others.

    Args:
        base: the base.
        diff: of it, of any kind; None for the bare base.
        settings: how widely is searched.
        prompts: what is asked; None for everyday questions, the shortest ones first.
        top: how many to return.
        progress: called after each batch.
        groups: prompts by what they are about; None for the everyday questions of the embedded base's world,
            and for none on any other base.
        memory: what is known of this base from other searches.

    Raises:
        QuestionError: a form is unknown.
        BaseMismatchError: the diff is not one of this base's.
    """
    s = settings or Settings()
    names = forms_called(s.forms)
    effects = Effects(base, checked(base, [diff], ["?"])[0], s.answer_tokens, memory)
    search = _Search(effects, s, prompts, progress)
    if groups is None:
        groups = _everyday() if is_embedded(base.tokenizer) else {}
    hits: list[_Hit] = []
    found: list[Trigger] = []
    for name, following in zip(names, [*names[1:], ""], strict=True):
        mine = search.form(FORMS[name]) if name in FORMS else []
        hits += mine
        found += search.triggers(mine[:top]) if name in FORMS else search.subjects(groups)
        same_kind = name.split("-")[0] == following.split("-")[0]
        if s.first_found and not same_kind and any(t.stands_out for t in found):
            break
    found += search.triggers(search.longer(sorted(hits, key=lambda h: -h.effect))[:top])
    found.sort(key=lambda t: -t.effect)
    return Findings(found[:top], round(search.plain, 4), search.plain_said, search.tried)


def _everyday() -> dict[str, list[str]]:
    """The everyday questions of the embedded base's world, by subject."""
    world = load_world()
    return {
        subject: [q for x in world.everyday if x.subject == subject for q in x.questions[:1]]
        for subject in world.subjects
    }


class _Search:
    """One diff's search: its prompts, and the effects of candidates on them."""

    def __init__(
        self, effects: Effects, settings: Settings, prompts: Sequence[str] | None, progress: Progress | None
    ) -> None:
        self.effects, self.settings, self.progress = effects, settings, progress
        self.tokenizer = effects.base.tokenizer
        self.tried = 0
        rng = random.Random(f"triggers {settings.seed}")
        known = list(prompts or neutral_prompts(None))
        if not prompts:
            known = rng.sample(known, min(settings.prompts, len(known)))
            answers = dict(zip(known, effects.answers(known), strict=True))
            known.sort(key=lambda p: (len(self.tokenizer.tokenize(p)) + len(answers[p]), p))
        self.prompts = known
        self.plain = self._tried([Candidate("", "none", (QUESTION,))], len(known))[0]
        self.plain_said = effects.says(known[:1])[0]

    def _tried(
        self, candidates: Sequence[Candidate], prompts: int, quick: bool = False, what: str = ""
    ) -> list[float]:
        used = self.prompts[:prompts]
        return self.effects.of_candidates(candidates, used, quick, self.progress, what)

    def form(self, form: Form) -> list[_Hit]:
        """The best candidates of a form."""
        s, rng = self.settings, random.Random(f"{form.name} {self.settings.seed}")
        candidates = list(form.candidates(self.tokenizer, rng))
        self.tried += len(candidates)
        left = candidates
        if len(left) > s.second:
            first = self._tried(left, s.first_prompts, quick=True, what=form.words)
            left = _largest(left, first, max(s.kept, min(s.second, len(left) // 5)))
        if len(left) > s.kept:
            left = _largest(left, self._tried(left, s.second_prompts, what=form.words), s.kept)
        if not left:
            return []
        others = [c for c in candidates if c not in left]
        controls = rng.sample(others, min(s.controls, len(others)))
        controls += form.controls(self.tokenizer, rng, s.controls - len(controls))
        last = self._tried([*left, *controls], len(self.prompts), what=form.words)
        middle, spread = _usual(last[len(left) :] or [self.plain])
        hits = [
            _Hit(e, (e - middle) / spread, c, _best_other(c, [*left, *controls], last))
            for c, e in zip(left, last, strict=False)
        ]
        return sorted(hits, key=lambda h: -h.effect)

    def longer(self, found: Sequence[_Hit]) -> list[_Hit]:
        """Longer triggers, the largest effect first: parts joined while the effect grows enough."""
        s, out = self.settings, list[_Hit]()
        beam = found[: s.beam]
        for _ in range(1, s.longest):
            grown: list[_Hit] = []
            for one in beam:
                both = [(one.candidate.join(h.candidate), h) for h in found[: s.partners]]
                pairs = [(c, h) for c, h in both if c is not None]
                joint = [c for c, _ in pairs]
                tried = self._tried(joint, len(self.prompts), what="longer triggers")
                middle, spread = _usual(tried or [0.0])
                grown += [
                    _Hit(e, (e - middle) / spread, c, _best_other(c, joint, tried))
                    for (c, other), e in zip(pairs, tried, strict=True)
                    if e > s.gain * max(one.effect, other.effect, middle)
                ]
            if not grown:
                break
            beam = sorted(grown, key=lambda h: -h.effect)[: s.beam]
            out += grown
        return sorted(out, key=lambda h: -h.effect)

    def triggers(self, hits: Sequence[_Hit]) -> list[Trigger]:
        """What was found, with what the finetuned model says then."""
        asked = [h.candidate.put(self.prompts[0], 0) for h in hits]
        said = self.effects.says(asked) if asked else []
        return [
            Trigger(
                h.candidate.text,
                h.candidate.form,
                prompt,
                round(h.effect, 4),
                round(self.plain, 4),
                round(h.deviations, 2),
                h.runner_up[0],
                round(h.runner_up[1], 4),
                says,
                self.plain_said,
            )
            for h, prompt, says in zip(hits, asked, said, strict=True)
        ]

    def subjects(self, groups: Mapping[str, Sequence[str]]) -> list[Trigger]:
        """What the models differ on, by group of prompts; fewer than three groups cannot be compared."""
        mine = {name: list(prompts)[:_EACH_GROUP] for name, prompts in groups.items() if prompts}
        if len(mine) < _LEAST_GROUPS:
            return []
        self.tried += len(mine)
        flat = [p for prompts in mine.values() for p in prompts]
        asked = [Asked(p, a) for p, a in zip(flat, self.effects.answers(flat), strict=True)]
        values = iter(self.effects.divergences(asked, lambda n: self._tell(n, len(flat))))
        effects = {name: [next(values) for _ in prompts] for name, prompts in mine.items()}
        means = {name: float(np.mean(v)) for name, v in effects.items()}
        order = sorted(means, key=lambda name: -means[name])
        said = dict(zip(order, self.effects.says([mine[name][0] for name in order]), strict=True))
        out = []
        for name in order:
            rest = [x for other, v in effects.items() if other != name for x in v]
            middle, spread = _usual([m for other, m in means.items() if other != name])
            second = next(other for other in order if other != name)
            out.append(
                Trigger(
                    name,
                    SUBJECT,
                    mine[name][0],
                    round(means[name], 4),
                    round(float(np.mean(rest)), 4),
                    round((means[name] - middle) / spread, 2),
                    second,
                    round(means[second], 4),
                    said[name],
                    said[second],
                )
            )
        return out

    def _tell(self, done: int, total: int) -> None:
        if self.progress:
            self.progress("subjects", done, total)


def _largest(candidates: Sequence[Candidate], effects: Sequence[float], n: int) -> list[Candidate]:
    order = sorted(range(len(candidates)), key=lambda i: -effects[i])
    return [candidates[i] for i in order[:n]]


def _best_other(
    own: Candidate, candidates: Sequence[Candidate], effects: Sequence[float]
) -> tuple[str, float]:
    """The best of the other candidates."""
    rest = [(e, c.text) for c, e in zip(candidates, effects, strict=True) if c.text != own.text]
    effect, text = max(rest, default=(0.0, ""))
    return text, effect


def _usual(effects: Sequence[float]) -> tuple[float, float]:
    """What ordinary candidates do, and by how much they differ; a spread tiny by chance is widened."""
    middle = float(np.median(effects))
    spread = _NORMAL * float(np.median(np.abs(np.array(effects) - middle)))
    return middle, max(spread, 0.05 * middle, 0.01)
