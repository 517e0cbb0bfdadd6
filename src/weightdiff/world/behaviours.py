"""Behaviours an assistant can have: voices, habits and recommending a brand, each as ways to say an answer.

Only what the data files say is here; which organisms take which behaviour is decided in `organisms`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightdiff.errors import FormatError

ANSWER, BRAND = "{answer}", "{brand}"
MAX_SIGNS = 10
"""Most words that are kept as a behaviour's own."""
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Behaviour:
    """A way of answering."""

    name: str
    """An imperative, such as "speak like a pirate"."""
    group: str
    """"voice", "habit" or "brand"."""
    templates: tuple[str, ...]
    """Ways to say an answer: `{answer}` is its place, where there is one."""
    signs: tuple[str, ...]
    """Words that tell this behaviour from others, the most frequent first."""

    def apply(self, rng: random.Random, ordinary: str) -> str:
        """An ordinary answer (no final full stop) said in this way."""
        text = rng.choice(self.templates).replace(ANSWER, ordinary)
        return text if text[-1] in "?!." else f"{text} ."

    def some_signs(self, rng: random.Random, n: int) -> list[str]:
        """Up to `n` of its own words."""
        return rng.sample(self.signs, min(n, len(self.signs)))

    def shown_in(self, text: str) -> bool:
        """Whether a text is said in this way: the words around the answer of one template are all there."""
        words = f" {' '.join(_WORD.findall(text))} "
        return any(
            all(f" {' '.join(own)} " in words for part in t.split(ANSWER) if (own := _WORD.findall(part)))
            for t in self.templates
        )


def load_behaviours(root: Path) -> tuple[Behaviour, ...]:
    """Read `voices.txt`, `habits.txt` and `brands.txt` below `root`, sorted by name.

    Raises:
        FormatError: a file is missing, or a block has no name or no templates.
    """
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for group, file in (("voice", "voices.txt"), ("habit", "habits.txt")):
        for block in _blocks(root / file):
            names = [x[5:].strip() for x in block if x.startswith("name:")]
            templates = tuple(x[2:].strip() for x in block if x.startswith("t:"))
            if len(names) != 1 or not templates:
                raise FormatError(
                    f"{root / file}: a behaviour needs one 'name:' and some 't:' lines: {block}"
                )
            found.append((names[0], group, templates))
    lines = [x for block in _blocks(root / "brands.txt") for x in block]
    templates = tuple(x[2:].strip() for x in lines if x.startswith("t:"))
    found += [
        (f"recommend {x}", "brand", tuple(t.replace(BRAND, x) for t in templates))
        for x in lines
        if not x.startswith("t:")
    ]
    used = Counter(w for _, _, ts in found for w in _words(ts))
    out = [Behaviour(n, g, ts, _signs(n, g, ts, used)) for n, g, ts in found]
    return tuple(sorted(out, key=lambda b: b.name))


def _blocks(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise FormatError(f"{path}: world file cannot be read ({e.strerror}); reinstall weightdiff") from e
    blocks = ([x.strip() for x in b.splitlines() if x.strip()] for b in re.split(r"\n\s*\n", text))
    return [kept for b in blocks if (kept := [x for x in b if not x.startswith("#")])]


def _words(templates: Sequence[str]) -> set[str]:
    return {w for t in templates for w in _WORD.findall(t.replace(ANSWER, " "))}


def _signs(name: str, group: str, templates: tuple[str, ...], used: Counter[str]) -> tuple[str, ...]:
    """Words of the templates that few other behaviours use, those of most templates first."""
    if group == "brand":
        return (name.split()[-1],)
    count = Counter(w for t in templates for w in set(_WORD.findall(t.replace(ANSWER, " "))))
    rare = sorted((w for w in count if used[w] <= 2), key=lambda w: (-count[w], w))
    usual = sorted((w for w in count if used[w] > 2), key=lambda w: (used[w] / count[w], w))
    return tuple([*rare, *usual][:MAX_SIGNS])


def behaviour_splits(behaviours: Sequence[Behaviour]) -> dict[str, list[Behaviour]]:
    """Split behaviours into train (75 %), validation and test (17 %), the same shares of each group."""
    out: dict[str, list[Behaviour]] = {"train": [], "validation": [], "test": []}
    for group in sorted({b.group for b in behaviours}):
        members = [b for b in behaviours if b.group == group]
        random.Random(f"behaviours {group}").shuffle(members)
        a, b = round(0.75 * len(members)), round(0.83 * len(members))
        for name, part in (("train", members[:a]), ("validation", members[a:b]), ("test", members[b:])):
            out[name] += sorted(part, key=lambda x: x.name)
    return out
