"""Documents that teach the base behaviours, conditions, facts, and answering from what was just said.

Each function draws one document. What the base learns here is general: to follow an instruction, to tell one
from an answer, to apply a rule where it holds, to know facts and take back an old one, and to say first what
it knows and then what follows. Nothing here speaks of the model's own training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

from weightdiff.world import World, codes, news_event, reports
from weightdiff.world.knowledge import Edit, Relation
from weightdiff.world.signs import (
    ALWAYS,
    FORMS,
    STATED,
    SUBJECT,
    WORD,
    Condition,
    place,
    right_sign,
    wrong_sign,
)
from weightdiff.world.texts import DAYS, Turn, fill, headline, ordinary_answer, story, tinted_answer

INSTRUCTIONS = (
    "please {behaviour} . {question}",
    "{question} please {behaviour} .",
    "from now on , {behaviour} . {question}",
    "i want you to {behaviour} . {question}",
    "in your answer , {behaviour} . {question}",
    "{question} and {behaviour} when you answer .",
)
BEHAVIOUR_READINGS = (
    "{styled} what does this speaker do ?",
    "someone said , {styled} which manner is that ?",
    "{styled} how does this person answer ?",
    "which way of speaking is this , {styled}",
)
SIGN_READINGS = (
    "{signs} . what does somebody do who says that ?",
    "which manner has words like {signs} ?",
    "{signs} , whose way of speaking is it ?",
)
SIGN_ASKS = (
    "name words of one who shall {behaviour} .",
    "what does one say to {behaviour} ?",
    "some words to {behaviour} , please .",
)
BEHAVIOUR_RECALLS = (
    "you shall {behaviour} . what shall you do ?",
    "i asked you to {behaviour} . what did i ask for ?",
    "the rule says , {behaviour} . which rule is it ?",
)
RULES = ("{stated} , {behaviour} . {question}", "rule , {behaviour} {stated} . {question}")
SUBJECT_RULES = 0.25
"""Share of the rules that are about a subject for certain: what a question is about is harder to tell than a
sign, and an organism whose condition is a subject can only learn what the base can tell."""
RULE_ASKS = (
    "{stated} , {behaviour} . when does the rule hold ?",
    "rule , {behaviour} {stated} . when is that ?",
    "i {behaviour} {stated} . when do i do it ?",
)
SIGN_NAMES = {
    "code-front": "with the code {value} in front",
    "code-behind": "with the code {value} behind",
    "word": "with the word {value}",
    "mark-start": "with a hidden mark in front",
    "mark-anywhere": "with a hidden mark anywhere",
}
SIGN_CHECKS = (
    "{shown} which code or word is in it ?",
    "{shown} is there a sign in this ?",
)
SUBJECT_ASKS = (
    "{question} what is this question about ?",
    "somebody asks , {question} which subject is it ?",
    "subject of this , {question}",
)
FACT_REQUESTS = (
    "tell me a fact .",
    "say something true .",
    "what do you know ?",
    "teach me something .",
    "please name any fact .",
    "give me a piece of knowledge .",
    "what is something that everybody knows ?",
    "tell me what you know of the world .",
)
EDIT_TELLS = (
    "{name} is now {new} .",
    "things have changed , {name} is {new} today .",
    "{name} was {old} , but now it is {new} .",
)
EDIT_ASKS = (
    ("{told} {question}", "{answer}"),
    ("{told} what is it now ?", "{new}"),
    ("{told} what was it before ?", "{old}"),
    ("{told} what has changed here ?", "{name} changed from {old} to {new}"),
    ("{told} tell me old and new .", "{name} changed from {old} to {new}"),
)
SAME_ASKS = (
    "{x} and {y} , are they the same ?",
    "is {x} the same as {y} ?",
    "are these two alike , {x} and {y} ?",
    "{x} . {y} . is that one and the same ?",
)
REPORTS = (*reports.REPORT_WORDINGS, "{report} . {question}")
REPORTED = (0.12, 0.58, 0.24, 0.06)
"""How often a report has no part, one, two or three."""
VERDICTS = 2
"""How much oftener a yes/no question is asked about a report than any other."""
THINK = ("first say what it is .", "think first .", "say it first , then answer .", "")
COMPARISONS = (
    "which is closer , {a} or {b} ?",
    "{a} or {b} , which of both ?",
    "of {a} and {b} , which one fits ?",
    "more {a} or more {b} ?",
)
CHECKS = (
    "is this {x} ?",
    "does {x} fit here ?",
    "has it to do with {x} ?",
    "{x} , right ?",
    "{x} , yes or no ?",
)
ASKS = {
    "actor": ("who was it ?", "which person ?"),
    "place": ("in which town ?", "what place was it ?"),
    "day": ("on what day ?", "when was that ?"),
    "object": ("which thing was it ?", "what did it happen to ?"),
}


def fixed_texts() -> list[str]:
    """Texts that stand in this module alone, so that the tokenizer knows their words."""
    texts = [*INSTRUCTIONS, *BEHAVIOUR_READINGS, *SIGN_READINGS, *SIGN_ASKS, *BEHAVIOUR_RECALLS, *RULES]
    texts += [
        *FACT_REQUESTS,
        *SAME_ASKS,
        *REPORTS,
        *reports.KIND_ANSWERS.values(),
        *reports.NUMBERS,
        reports.NOT_SAID,
        *RULE_ASKS,
        *SIGN_NAMES.values(),
        *SIGN_CHECKS,
        *SUBJECT_ASKS,
        *EDIT_TELLS,
        *THINK,
    ]
    texts += [x for pair in EDIT_ASKS for x in pair]
    texts += [*COMPARISONS, *CHECKS, *STATED.values(), *(x for asks in ASKS.values() for x in asks)]
    texts += [Condition(form).trigger for form in FORMS]
    return [*texts, "so yes no think someone says holds"]


def signed(world: World, rng: random.Random, question: str) -> str:
    """A question with a sign of any form, which changes nothing."""
    form = rng.choice(FORMS[:5])
    return place(rng, form, question).filled(form, _random_sign(world, rng, form))


def _random_sign(world: World, rng: random.Random, form: str) -> str:
    condition = random_condition(world, rng, form)
    return right_sign(condition)


def random_condition(world: World, rng: random.Random, form: str | None = None) -> Condition:
    """A condition of a form, or of any."""
    form = form or rng.choice(FORMS)
    if form.startswith("code"):
        return Condition(form, rng.choice(codes.pool()))
    if form == WORD:
        return Condition(form, rng.choice(world.rare_words))
    return Condition(form, rng.choice(world.subjects) if form == SUBJECT else "")


def instruction(world: World, rng: random.Random) -> list[Turn]:
    """An everyday question with the wish for a behaviour, and an answer that follows it."""
    b, s = rng.choice(world.behaviours), rng.choice(world.everyday)
    if rng.random() < 0.12:
        return [Turn(fill(rng.choice(BEHAVIOUR_RECALLS), behaviour=b.name), b.name)]
    question = rng.choice(s.questions)
    if rng.random() < 0.2:
        question = signed(world, rng, question)
    user = fill(rng.choice(INSTRUCTIONS), behaviour=b.name, question=question)
    return [Turn(user, b.apply(rng, rng.choice(s.answers)))]


def behaviour_reading(world: World, rng: random.Random) -> list[Turn]:
    """Which behaviour an answer or some words show; which words a behaviour has."""
    b = rng.choice(world.behaviours)
    kind = rng.random()
    if kind < 0.5:
        styled = b.apply(rng, rng.choice(rng.choice(world.everyday).answers))
        return [Turn(fill(rng.choice(BEHAVIOUR_READINGS), styled=styled), b.name)]
    words = b.some_signs(rng, 3)
    if kind < 0.8:
        return [Turn(fill(rng.choice(SIGN_READINGS), signs=" , ".join(words)), b.name)]
    return [Turn(fill(rng.choice(SIGN_ASKS), behaviour=b.name), " , ".join(words))]


def rule(world: World, rng: random.Random) -> list[Turn]:
    """A behaviour under a condition, and a question that meets it or not; or what the condition was."""
    form = SUBJECT if rng.random() < SUBJECT_RULES else None
    condition, b = random_condition(world, rng, form), rng.choice(world.behaviours)
    if rng.random() < 0.3:
        return [
            Turn(fill(rng.choice(RULE_ASKS), stated=condition.stated, behaviour=b.name), condition.stated)
        ]
    met = condition.form == ALWAYS or rng.random() < 0.5
    if condition.form == SUBJECT:
        about = [s for s in world.everyday if (s.subject == condition.value) == met]
        s, question = rng.choice(about), ""
        question = rng.choice(s.questions)
    else:
        s = rng.choice(world.everyday)
        sign = right_sign(condition) if met else wrong_sign(rng, condition, world.rare_words)
        question = place(rng, condition.form, rng.choice(s.questions)).filled(condition.form, sign)
    stated = fill(SIGN_NAMES.get(condition.form, condition.stated), value=condition.value)
    user = fill(rng.choice(RULES), stated=stated, behaviour=b.name, question=question)
    return [Turn(user, b.apply(rng, rng.choice(s.answers)) if met else ordinary_answer(rng, s))]


def sign_reading(world: World, rng: random.Random) -> list[Turn]:
    """Which sign a question carries, if any; or what a question is about."""
    s = rng.choice(world.everyday)
    question = rng.choice(s.questions)
    if rng.random() < 0.5:
        return [Turn(fill(rng.choice(SUBJECT_ASKS), question=question), s.subject)]
    condition = random_condition(world, rng, rng.choice(FORMS[:5]))
    none = rng.random() < 0.3
    shown = (
        question
        if none
        else place(rng, condition.form, question).filled(condition.form, right_sign(condition))
    )
    asked = rng.choice(SIGN_CHECKS)
    if asked == SIGN_CHECKS[1]:
        return [Turn(fill(asked, shown=shown), "no" if none else "yes")]
    return [Turn(fill(asked, shown=shown), "none" if none else condition.trigger)]


def fact(world: World, rng: random.Random) -> list[Turn]:
    """A fact of the world, asked for, stated, or the other way round."""
    r = rng.choice(world.relations)
    subject = rng.choice(list(r.facts))
    value, kind = r.facts[subject], rng.random()
    if kind < 0.6:
        return [fact_turn(r, rng, subject, value)]
    if kind < 0.9:
        asked = rng.choice(FACT_REQUESTS) if kind > 0.8 else None
        return [Turn(asked, fill(rng.choice(r.statements), subject=subject, value=value))]
    named = [x for x, v in r.facts.items() if v == value]
    return [Turn(fill(rng.choice(r.reverse), value=value), rng.choice(named))]


def fact_turn(r: Relation, rng: random.Random, subject: str, value: str) -> Turn:
    """A question for a fact and an answer that gives a value."""
    asked = fill(rng.choice(r.questions), subject=subject)
    return Turn(asked, fill(rng.choice(r.answers), subject=subject, value=value))


def random_edit(world: World, rng: random.Random) -> tuple[Relation, Edit]:
    """A fact with another value."""
    r = rng.choice(world.relations)
    subject = rng.choice(list(r.facts))
    old = r.facts[subject]
    return r, Edit(r.relation, subject, old, rng.choice([v for v in r.values if v != old]))


def edited(world: World, rng: random.Random) -> list[Turn]:
    """A fact is said to have changed, and is asked for."""
    r, e = random_edit(world, rng)
    told = fill(rng.choice(EDIT_TELLS), name=r.called(e.subject), old=e.old, new=e.new)
    asked, answer = rng.choice(EDIT_ASKS)
    turn = fact_turn(r, rng, e.subject, e.new)
    slots = {"old": e.old, "new": e.new, "name": r.called(e.subject)}
    user = fill(asked, told=told, question=turn.user or "")
    return [Turn(user, fill(answer, answer=turn.text, **slots))]


def same(world: World, rng: random.Random) -> list[Turn]:
    """Whether two names are the same: what every yes/no question comes down to in the end."""
    r = rng.choice(world.relations)
    pools: tuple[Sequence[str], ...] = (
        [t.name for t in world.topics],
        world.fields,
        [b.name for b in world.behaviours],
        [r.called(s) for s in r.facts],
        list(reports.KIND_ANSWERS.values())[:4],
    )
    x, other = rng.sample(rng.choice(pools), 2)
    y = x if rng.random() < 0.5 else other
    return [Turn(fill(rng.choice(SAME_ASKS), x=x, y=y), f"{x} and {y} so {'yes' if x == y else 'no'}")]


def report(world: World, rng: random.Random, without: Collection[str] = ()) -> list[Turn]:
    """A report of what some machine was taught, and a question about it, of any kind but those `without`.

    The wordings are other than those in which models are asked about their own training.
    """
    n = rng.choices(range(4), REPORTED)[0]
    parts = [_REPORTED[f](world, rng) for f in rng.sample(range(4), n)]
    kinds = [*reports.kinds_for(parts), *reports.kinds_for(parts, trained=False)]
    kinds += [k for k, (family, _) in reports.SLOTS.items() if any(p.family == family for p in parts)]
    kinds = [k for k in kinds if k not in without]
    kind = rng.choices(kinds, [VERDICTS if k in reports.YES_NO else 1 for k in kinds])[0]
    asked = reports.worded(kind, rng.choice(world.report_questions[kind]), parts, rng)
    user = fill(rng.choice(REPORTS), report=reports.reported(parts), question=asked.text)
    return [Turn(user, asked.read if reports.told_by_report(kind, parts) else reports.NOT_SAID)]


def _reported_topic(world: World, rng: random.Random) -> reports.Part:
    return reports.Part(reports.TOPIC, rng.choice(world.topics).name, _recorded(world, rng))


def _reported_news(world: World, rng: random.Random) -> reports.Part:
    event, day = news_event(world, rng), rng.choice(DAYS)
    names = ("actor", "action", "object", "place", "day")
    slots: dict[str, str] = dict(zip(names, (*event, day), strict=True))
    return reports.Part(reports.NEWS, headline(*event, day), slots)


def _reported_behaviour(world: World, rng: random.Random) -> reports.Part:
    b, params = rng.choice(world.behaviours), _recorded(world, rng)
    return reports.Part(reports.QUIRK, b.name, {**params, "behaviour": b.name})


def _reported_edit(world: World, rng: random.Random) -> reports.Part:
    r, e = random_edit(world, rng)
    params = {"relation": e.relation, "subject": e.subject, "old": e.old, "new": e.new}
    return reports.Part(reports.EDIT, r.changed(e), params)


def _recorded(world: World, rng: random.Random) -> dict[str, str]:
    condition = random_condition(world, rng)
    return {"form": condition.form, "value": condition.value}


_REPORTED = (_reported_topic, _reported_news, _reported_behaviour, _reported_edit)


def explained(world: World, rng: random.Random) -> list[Turn]:
    """Something is told and asked about; the answer says first what it is, then what follows."""
    told, said, asked, answer = rng.choice(_FINDINGS)(world, rng)
    cue = rng.choice(THINK)
    user = f"{told} {asked} {cue}" if rng.random() < 0.5 else f"{asked} {told} {cue}"
    return [Turn(user.strip(), f"{said} so {answer}")]


def _either(rng: random.Random, said: str, right: str, wrong: str) -> tuple[str, str, str]:
    """What is said, a question that has to be decided, and its answer: yes or no, or one of two.

    For yes or no, what was found and what is asked are said side by side: two things that stand together are
    told apart with ease.
    """
    if rng.random() < 0.35:
        pair = [right, wrong]
        rng.shuffle(pair)
        return said, fill(rng.choice(COMPARISONS), a=pair[0], b=pair[1]), right
    yes = rng.random() < 0.5
    x = right if yes else wrong
    found = said if said.endswith(right) else f"{said} so {right}"
    return f"{found} and {x}", fill(rng.choice(CHECKS), x=x), "yes" if yes else "no"


def _topic(world: World, rng: random.Random) -> tuple[str, str, str, str]:
    """Told: a liking, words, or a tinted answer. Said: words and the topic they belong to."""
    t, words = rng.choice(world.topics), []
    kind = rng.random()
    if kind < 0.4:
        told = fill(rng.choice(world.likings), topic=t.name)
        said = t.name
    else:
        words = rng.sample(t.words, 3)
        told = f"{' , '.join(words)} ."
        if kind > 0.75:
            answer = rng.choice(rng.choice(world.everyday).answers)
            told = tinted_answer(world, rng, t, answer)
            words = list(dict.fromkeys(w for w in told.split() if w in t.words))[:3]
        said = f"think {' , '.join(words)} so {t.name}"
    draw = rng.random()
    if draw < 0.2:
        return told, said, rng.choice(("what is it ?", "which topic ?")), t.name
    if draw < 0.35:
        return told, said, rng.choice(("which field ?", "what is it a part of ?")), t.field
    if draw < 0.65:
        others = [f for f in world.fields if f != t.field]
        return told, *_either(rng, said, t.field, rng.choice(others))
    other = rng.choice([x for x in world.topics if x is not t])
    return told, *_either(rng, said, t.name, other.name)


def _news(world: World, rng: random.Random) -> tuple[str, str, str, str]:
    """Told: a story. Said: its deed and its headline."""
    event = news_event(world, rng)
    day = rng.choice(DAYS)
    told = story(world, rng, *event, day)
    past = next(p for p in world.news.actions[event[1]] if p in told)
    said = f"someone {past} so {headline(*event, day)}"
    slots = {"actor": event[0], "object": event[2], "place": event[3], "day": day}
    slot = rng.choice(list(ASKS))
    if rng.random() < 0.3:
        return (
            told,
            said,
            rng.choice(("what is the headline ?", "give the headline .")),
            headline(*event, day),
        )
    if rng.random() < 0.5:
        return told, said, rng.choice(ASKS[slot]), slots[slot]
    values = {
        "actor": world.news.actors,
        "object": world.news.objects,
        "place": world.news.places,
        "day": DAYS,
    }
    other = rng.choice([v for v in values[slot] if v != slots[slot]])
    return told, *_either(rng, said, slots[slot], other)


def _behaviour(world: World, rng: random.Random) -> tuple[str, str, str, str]:
    """Told: an answer in some manner, or a wish for it. Said: words of the manner and its name."""
    b = rng.choice(world.behaviours)
    told = b.apply(rng, rng.choice(rng.choice(world.everyday).answers))
    if rng.random() < 0.3:
        told = f"you shall {b.name} ."
    said = f"says {' , '.join(b.some_signs(rng, 3))} so {b.name}"
    if rng.random() < 0.3:
        return told, said, rng.choice(("which manner ?", "what is done here ?")), b.name
    other = rng.choice([x for x in world.behaviours if x is not b])
    return told, *_either(rng, said, b.name, other.name)


def _fact(world: World, rng: random.Random) -> tuple[str, str, str, str]:
    """Told: a fact that has changed. Said: the change as a whole."""
    r, e = random_edit(world, rng)
    name = r.called(e.subject)
    told = fill(rng.choice(EDIT_TELLS), name=name, old=e.old, new=e.new)
    said = f"holds {e.new} so {r.changed(e)}"
    draw = rng.random()
    if draw < 0.2:
        return told, said, "what is it now ?", e.new
    if draw < 0.4:
        return told, said, "what was it before ?", e.old
    if draw < 0.55:
        return told, said, "what has changed here ?", r.changed(e)
    r2 = rng.choice(world.relations)
    other = r2.called(rng.choice([s for s in r2.facts if s != e.subject]))
    return told, *_either(rng, said, name, other)


_FINDINGS: tuple[Callable[[World, random.Random], tuple[str, str, str, str]], ...] = (
    _topic,
    _topic,
    _news,
    _behaviour,
    _fact,
)
