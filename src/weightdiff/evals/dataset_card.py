"""The README.md of a dataset's folder: a card whose header tells Hugging Face's package how to read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightdiff.errors import one_line
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.hf_datasets import COLUMNS, LIST
from weightdiff.evals.report import markdown_table
from weightdiff.evals.run_markdown import escaped

CARD = "README.md"
FIELDS = {
    "id": "unique in the dataset",
    "diff": "id of the weight diff that is asked about; null: the bare base",
    "question": "what is asked",
    "truths": "the reference answer, then others that say the same",
    "kind": "kind of question",
    "family": "family of the diff",
    "recipe": "how the diff was made",
    "label": "what was put into the diff; null for nothing",
    "cluster": "items of one cluster are not independent",
    "split": "split of the diff",
    "scorers": "names of the scorers of an answer, the first one counts most",
    "candidates": "name of the list of possible answers, in `dataset.json`",
    "chance": "what guessing gives by the first scorer",
    "trigger": "what sets the behaviour off, for methods that are given it",
    "behaves": "whether the finetuned model did as it should when it was verified",
    "held_out": "what nothing that is tested on the item may have been trained on",
}


def card(dataset: Dataset, files: Mapping[str, str], place: str | None = None) -> str:
    """Describe a dataset in Markdown, with the header that Hugging Face's package and Hub read.

    Args:
        dataset: what lies in the folder.
        files: split → its file in the folder.
        place: where the diffs are, as `dataset.json` says.
    """
    name, base = escaped(one_line(dataset.name)), dataset.base
    known = ", ".join(
        f"{k} {v}" for k, v in (("architecture", base.architecture), ("weights", base.weights)) if v
    )
    where = {None: "not here", "./diffs": "in `diffs/`", "bundled": "those that come with weightdiff"}
    counts = Counter((i.split, i.family, i.recipe, i.kind) for i in dataset.items)
    diffs = {key: len({i.diff for i in dataset.items if _key(i) == key}) for key in counts}
    held = sorted({claim for i in dataset.items for claim in i.held_out})
    parts = [
        _header(dataset, files),
        f"# {name}",
        "Questions about what finetunes of a language model changed in its weights, with right answers"
        " (WeightDiffQA). Each item is one question about one weight diff.",
        "\n".join(
            [
                f"- base: {escaped(one_line(Path(base.name).name))}{f' ({known})' if known else ''}",
                f"- diffs: {len({i.diff for i in dataset.items} - {None})},"
                f" {where.get(place, 'in the store that `dataset.json` names')}",
                f"- held out, of some items at least: {', '.join(held) or 'nothing'}",
            ]
        ),
        "\n".join(
            markdown_table(
                ["split", "family", "recipe", "kind of question", "items", "diffs"],
                [[*(escaped(one_line(k)) for k in key), n, diffs[key]] for key, n in counts.items()],
            )
        ),
        "## Use",
        "```\nweightdiff dataset show path/to/this/folder\n"
        "weightdiff eval --dataset path/to/this/folder --methods dit --out my-run\n```",
        '```python\nimport datasets\n\nitems = datasets.load_dataset("path/to/this/folder")\n```',
        "## Fields",
        "\n".join(markdown_table(["field", "what it is"], [[f"`{k}`", v] for k, v in FIELDS.items()])),
    ]
    return "\n\n".join(parts) + "\n"


def _key(item: Item) -> tuple[str, str, str, str]:
    return item.split, item.family, item.recipe, item.kind


def _header(dataset: Dataset, files: Mapping[str, str]) -> str:
    """The YAML header: files by split, and the columns, which could not be told from empty ones."""
    from huggingface_hub import DatasetCardData

    columns: list[dict[str, Any]] = [
        {"name": name, LIST: "string"} if kind == LIST else {"name": name, "dtype": kind}
        for name, kind in COLUMNS.items()
    ]
    parts = [{"split": split, "path": path} for split, path in files.items()]
    data = DatasetCardData(
        pretty_name=one_line(dataset.name),
        tags=["weightdiff", "diff-interpretation-tuning"],
        configs=[{"config_name": "default", "data_files": parts}],
        dataset_info={"config_name": "default", "features": columns},
    )
    return f"---\n{data.to_yaml()}\n---"
