"""Model cards: the README.md that an interpreter or a diff is shared with.

They say what the objects hold and nothing else; what is not known is left out. Uploading is in `sharing`; the
README of an exported LoRA is in `export`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightdiff.diffs.hub import HubName
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import InterpreterError
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import BUNDLED_NAME
from weightdiff.organisms.questions import phrasings

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2510.05092"
RESULT_COLUMNS = (
    "method",
    "family",
    "recipe",
    "kind",
    "split",
    "metric",
    "unit",
    "n",
    "mean",
    "low",
    "high",
    "chance",
)

_PLACE = "path/to/this/folder"
_LONGEST = 200
_TAGS = ("weightdiff", "diff-interpretation-tuning")


def interpreter_card(
    interpreter: Interpreter, results: Sequence[Mapping[str, Any]] = (), name: str = _PLACE
) -> str:
    """Describe an interpreter in Markdown, with the header that the Hub reads.

    Args:
        interpreter: one with an adapter; what is said of its tuning comes out of its `meta`.
        results: rows of an evaluation, as `ResultRow.to_json` gives them.
        name: where the reader finds the interpreter, a Hub name or a folder.

    Raises:
        InterpreterError: there is no adapter.
    """
    if interpreter.adapter is None:
        raise InterpreterError(
            "an interpreter without an adapter has no card; tune one with: weightdiff tune"
        )
    base, meta, adapter = interpreter.base.ref, interpreter.meta, interpreter.adapter
    question = json.dumps(phrasings("topic")[0])
    place, base_there = json.dumps(name), _base_argument(base)
    option = f" --base {base_there}" if base_there else ""
    second = f", {json.dumps(base_there)}" if base_there else ""
    parts = [
        _header(base, meta),
        "# A weightdiff interpreter",
        f"""This LoRA makes finetuned versions of its base say in plain words what their finetuning changed.
It is put on the base together with a finetune's weight diff; then the model is asked. It was tuned by Diff
Interpretation Tuning ([arXiv 2510.05092]({PAPER})): one adapter, over many finetunes whose changes are
known. It has rank {adapter.max_rank} on {len(adapter.modules)} modules.""",
        "## Use",
        f"""```python
from weightdiff import Interpreter, WeightDiff
interpreter = Interpreter.load({place}{second})
print(interpreter.ask(WeightDiff.load("my-lora"), {question}).text)
```""",
        f"""```
weightdiff ask --interpreter {shlex.quote(name)}{option} --diff my-lora {question}
```""",
        "`my-lora` stands for a LoRA of the same base, as a folder or a Hub name. An interpreter words"
        " questions in its own way (`interpreter.json`): the adapter alone, without weightdiff, is not asked"
        " the same.",
        "## Base",
        _base_lines(base),
        _tuning(meta),
        _results(meta, results),
        "## Limits",
        _bullets(
            [
                "It reads weight diffs of the base above and of no other model.",
                f"It was tuned on {_families(meta)}; of other kinds of changes its answers are a guess until"
                " they are measured.",
                "The evidence that comes with an answer is log p(answer | diff) − log p(answer | no diff) in"
                " nats. It is not the probability that the answer is right.",
                "It is not tested against finetunes that were made to deceive it.",
            ]
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def diff_card(diff: WeightDiff, base: ModelRef | None = None, name: str = _PLACE) -> str:
    """Describe a weight diff in a few lines of Markdown, with the header that the Hub reads.

    Args:
        diff: what is shared.
        base: the model that it belongs to; left out, the diff's own.
        name: where the reader finds the diff, a Hub name or a folder.
    """
    base = base or diff.base
    question = json.dumps(phrasings("topic")[0])
    option = f" --base {there}" if (there := _base_argument(base) if base else "") else ""
    low = [m.rank for m in diff.modules.values() if isinstance(m, LoraFactors)]
    kinds = [f"{len(low)} modules as low-rank factors (rank {_range(low)})"] if low else []
    kinds += [f"{len(diff.modules) - len(low)} as dense matrices"] if len(diff.modules) > len(low) else []
    kinds += [f"{len(diff.parameters)} other parameters"] if diff.parameters else []
    parts = [
        _header(base, diff.meta, tuned=False),
        "# A weight diff",
        f"What a finetune added to the weights of its base: {', '.join(kinds) or 'nothing'};"
        f" {diff.num_parameters:,} numbers.",
        f"A weightdiff interpreter of the base says what was trained into it ([the method]({PAPER})):",
        f"""```
weightdiff ask --diff {shlex.quote(name)}{option} {question}
```""",
        "## Base" if base else "",
        _base_lines(base) if base else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(base: ModelRef | None, meta: Mapping[str, Any], tuned: bool = True) -> str:
    """Return the YAML header; a base that is not on the Hub is left out of it."""
    on_hub = _hub_name(base) if base else None
    lines = [f"base_model: {json.dumps(on_hub)}"] if on_hub else []
    lines += ["library_name: peft", "tags:", *(f"- {tag}" for tag in (_TAGS if tuned else _TAGS[:1]))]
    if isinstance(meta.get("license"), str):
        lines.append(f"license: {json.dumps(meta['license'])}")
    return "\n".join(["---", *lines, "---"])


def _hub_name(base: ModelRef) -> str | None:
    """Return a base's name if it is one of the Hub's and no folder here."""
    found = HubName.parse(base.name)
    return base.name if found and str(found) == found.repo and not Path(base.name).exists() else None


def _base_argument(base: ModelRef) -> str:
    """Return what to load a base by: its Hub name, a stand-in for a folder, or "" for the bundled one."""
    return "" if base.name == BUNDLED_NAME else _hub_name(base) or "path/to/the/base"


def _base_lines(base: ModelRef) -> str:
    """Name a base; of a folder only the last part, for paths are nobody's business."""
    bundled = "the base that comes with weightdiff (`weightdiff-tiny`)"
    folder = f"a folder named `{_plain(Path(base.name).name)}`"
    named = bundled if base.name == BUNDLED_NAME else f"`{on_hub}`" if (on_hub := _hub_name(base)) else folder
    known = (
        ("revision", base.revision),
        ("fingerprint of its architecture", base.architecture),
        ("fingerprint of its weights", base.weights),
    )
    return _bullets([f"model: {named}", *(f"{what}: `{_plain(value)}`" for what, value in known if value)])


def _tuning(meta: Mapping[str, Any]) -> str:
    """Return what `meta` says of the tuning: data, questions, settings."""
    config = _mapping(meta.get("config"))
    weights, reader = _mapping(config.get("family_weights")), _mapping(meta.get("reader"))
    wordings = {k: v for k, v in _mapping(meta.get("train_phrasings")).items() if isinstance(v, list)}
    lines = [
        ("diffs tuned on", _count(meta.get("train_ids"))),
        ("their labels", _count(meta.get("train_labels"))),
        ("labels held back for validation", _count(meta.get("validation_labels"))),
        ("families drawn, by weight", ", ".join(f"{_plain(k)} {_plain(v)}" for k, v in weights.items())),
        (
            "wordings of the questions",
            ", ".join(f"{len(v)} of {_plain(k)}" for k, v in wordings.items()),
        ),
        ("notes before an answer, at most", _plain(config.get("notes"))),
        ("rank", _plain(config.get("rank"))),
        ("steps, at most", _plain(config.get("steps"))),
        ("diffs in a step", _plain(config.get("batch"))),
        ("peak learning rate", _plain(config.get("lr"))),
        ("seed", _plain(config.get("seed"))),
        ("reader of its reports, steps", _plain(_mapping(reader.get("config")).get("steps"))),
    ]
    said = [f"{what}: {value}" for what, value in lines if value]
    return f"## Tuning\n\n{_bullets(said)}" if said else ""


def _results(meta: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the validation score, where labels were held back for it, and a table of the rows."""
    said = [_validation(meta), _table(rows)]
    return "\n\n".join(["## Results", *filter(None, said)]) if any(said) else ""


def _validation(meta: Mapping[str, Any]) -> str:
    """Return what was scored when the adapter was chosen; without held-back rows there was no score."""
    best, history = meta.get("validation_score"), meta.get("history")
    lines = [_mapping(line) for line in history] if isinstance(history, list) else []
    kept = next((line for line in lines if line.get("score") == best), None)
    if kept is None or not isinstance(best, (int, float)):
        return ""
    shares = [f"{_plain(k)} {_plain(v)}" for k, v in kept.items() if k not in ("step", "loss", "score")]
    each = f" ({', '.join(shares)})" if shares else ""
    step = f" It was reached at step {_plain(kept['step'])}." if "step" in kept else ""
    return (
        f"Best validation score: {best:.3f}{each}, the share of exact answers about held-back diffs, families"
        f" weighted as above.{step} The adapter was chosen by it, so it flatters."
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [c for c in RESULT_COLUMNS if any(row.get(c) not in (None, "") for row in rows)]
    lines = [columns, ["---"] * len(columns), *([_plain(row.get(c)) for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) if rows else ""


def _families(meta: Mapping[str, Any]) -> str:
    names = [_plain(name) for name in _mapping(_mapping(meta.get("config")).get("family_weights"))]
    return f"finetunes of the families {', '.join(names)}" if names else "the finetunes that its tuning saw"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, or an empty one for whatever else was read from a file."""
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> str:
    return f"{len(value):,}" if isinstance(value, list) and value else ""


def _range(ranks: Sequence[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"


def _plain(value: Any) -> str:
    """Return a value as one line without Markdown's marks; fractions in four digits, None as nothing."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return re.sub(r"[|`<>\[\]*\\]", "", " ".join(text.split()))[:_LONGEST]
