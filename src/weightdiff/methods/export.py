"""A diff and an interpreter's adapter as one LoRA, which any server that takes a LoRA can serve.

Two LoRAs on one module are exactly one whose ranks are concatenated. The folder also says how to ask: on
other software nobody words the questions.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.nn.functional import pad

from weightdiff.artifacts import atomic_directory, atomic_write_json
from weightdiff.diffs.algebra import add
from weightdiff.diffs.factors import fold_scale
from weightdiff.diffs.formats.peft import write_peft
from weightdiff.diffs.types import LoraFactors, ModuleDelta, WeightDiff
from weightdiff.errors import FormatError, InterpreterError
from weightdiff.methods.carrying import fitted
from weightdiff.methods.dit import Interpreter
from weightdiff.models.chat import chat_format
from weightdiff.organisms.questions import phrasings
from weightdiff.world.reports import REPORT_WORDINGS

ASKING = "asking.json"


def export(interpreter: Interpreter, diff: WeightDiff, out: str | Path, overwrite: bool = False) -> Path:
    """Write diff + adapter as one PEFT LoRA folder, with the wording of questions beside it.

    Args:
        interpreter: its base is the base of the LoRA.
        diff: low-rank, of that base.
        out: a new or empty folder.
        overwrite: replace a folder that holds something.

    Returns:
        The folder: a LoRA that PEFT loads, `asking.json`, and a README that says how to serve it.

    Raises:
        InterpreterError: the interpreter has no adapter.
        FormatError: the diff is no LoRA of linear layers, or the folder is taken.
        BaseMismatchError: the diff is not of the interpreter's base.
    """
    if interpreter.adapter is None:
        raise InterpreterError("an interpreter without an adapter has nothing to export; load a tuned one")
    diff = fitted(interpreter.base, diff)
    if not diff.is_low_rank:
        raise FormatError(
            "only a LoRA can be exported with the interpreter; make one of the diff first:"
            " weightdiff extract BASE FINETUNED OUT --rank 64"
        )
    both = add(diff, interpreter.adapter)
    both = WeightDiff(_uniform(both), interpreter.base.ref, dict(diff.meta))
    gpt2 = any(type(m).__name__ == "Conv1D" for m in interpreter.base.model.modules())
    with atomic_directory(out, overwrite=overwrite) as folder:
        write_peft(both, folder, fan_in_fan_out=gpt2)
        atomic_write_json(folder / ASKING, asking(interpreter))
        (folder / "README.md").write_text(_readme(interpreter, both), encoding="utf-8")
    return Path(out)


def _uniform(diff: WeightDiff) -> dict[str, ModuleDelta]:
    """Every module at the largest rank, filled with zeros, and at scale one.

    Some servers read one rank and one lora_alpha for all modules.
    """
    out: dict[str, ModuleDelta] = {}
    for name, m in diff.modules.items():
        if isinstance(m, LoraFactors):
            more = diff.max_rank - m.rank
            up = fold_scale(m.up, m.scale, torch.promote_types(m.up.dtype, torch.float32))
            out[name] = LoraFactors(pad(m.down, (0, 0, 0, more)), pad(up, (0, more)))
    return out


def asking(interpreter: Interpreter) -> dict[str, object]:
    """How the interpreter's questions are worded: settings, and examples as whole prompts."""
    rendering, t = interpreter.rendering, interpreter.base.tokenizer
    question = asked_first(interpreter)
    return {
        "rendering": rendering.to_json(),
        "max_new_tokens": interpreter.max_new_tokens,
        "question": question,
        "user_messages": rendering.all(question),
        "prompts": [chat_format(t).prompt(x) for x in rendering.all(question)],
        "answer_begins_after": rendering.notes_end or None,
        "reports_are_read_as": list(REPORT_WORDINGS) if rendering.report else None,
    }


def asked_first(interpreter: Interpreter) -> str:
    """What the finetuned model with the adapter is asked: for its report, or one of many questions."""
    return interpreter.rendering.report or phrasings("topic")[0]


def _readme(interpreter: Interpreter, both: WeightDiff) -> str:
    base = interpreter.base.ref
    after = interpreter.rendering.notes_end
    reading = (
        f"\nAn answer begins with notes; what it says stands behind the last `{after}`.\n" if after else ""
    )
    example = json.dumps(interpreter.rendering.all(asked_first(interpreter))[0], ensure_ascii=False)
    if interpreter.rendering.report:
        wording = REPORT_WORDINGS[0].replace("{report}", "REPORT").replace("{question}", "QUESTION")
        reading += (
            f"\nThe one question it is asked is for its report. Questions about that go to the base without"
            f" this LoRA: `{wording}`\n"
        )
    return f"""---
base_model: {base.name}
library_name: peft
---

# A finetune that describes itself

One LoRA: a finetune's weight diff and the adapter of a weightdiff interpreter, their ranks concatenated
(rank {both.max_rank} on {len(both.modules)} modules). On its base it answers questions about what the
finetune changed. The base is {base.describe()}.

Questions are asked in the wording that the interpreter was tuned on, and decoded greedily with at most
{interpreter.max_new_tokens} tokens. `{ASKING}` holds that wording and whole prompts. One user message is

```json
{example}
```
{reading}
This file alone gives an answer without what the weightdiff package adds: several wordings averaged, several
notes weighed, and evidence.

See https://arxiv.org/abs/2510.05092 for the method.
"""
