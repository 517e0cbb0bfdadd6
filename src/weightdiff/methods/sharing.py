"""Interpreters and diffs put on the Hugging Face Hub, each with its card.

What is uploaded is a folder that `Interpreter.load` or `WeightDiff.load` reads back under the Hub name;
downloading is in `diffs.hub`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightdiff.artifacts import atomic_write_text
from weightdiff.diffs.formats.peft import write_peft
from weightdiff.diffs.hub import HubName, hub_errors
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import FormatError
from weightdiff.methods.cards import CARD, diff_card, interpreter_card
from weightdiff.methods.dit import Interpreter


def push_interpreter(
    interpreter: Interpreter,
    repo_id: str,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    results: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Upload an interpreter with its card; files of the same names are replaced, others stay.

    Args:
        interpreter: one with an adapter.
        repo_id: "owner/name"; made if it is not there.
        private: make a private repository, and refuse one that is there and public. With False, a private one
            that is there stays private.
        revision: branch to commit to, made if it is not there; None for the default branch.
        message: of the commit.
        results: rows of an evaluation for the card, as `ResultRow.to_json` gives them.

    Returns:
        The URL of the repository, or of the branch in it.

    Raises:
        InterpreterError: there is no adapter.
        FormatError: the name cannot be one, the Hub refuses it or cannot be reached, or the repository is
            public.
    """
    wanted = _target(repo_id, revision)
    card = interpreter_card(interpreter, results, repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = interpreter.save(Path(temporary) / "interpreter")
        atomic_write_text(folder / CARD, card)
        return _upload(folder, wanted, private, message or "Interpreter")


def push_diff(
    diff: WeightDiff,
    repo_id: str,
    base: ModelRef | None = None,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a LoRA as a PEFT folder with its card; files of the same names are replaced, others stay.

    Args:
        diff: low-rank.
        repo_id: "owner/name"; made if it is not there.
        base: the model that it belongs to; left out, the diff's own.
        private: make a private repository, and refuse one that is there and public. With False, a private one
            that is there stays private.
        revision: branch to commit to, made if it is not there; None for the default branch.
        message: of the commit.

    Returns:
        The URL of the repository, or of the branch in it.

    Raises:
        FormatError: the diff is no LoRA, the name cannot be one, the Hub refuses it or cannot be reached, or
            the repository is public.
        NonFiniteError: the diff holds NaN or infinity.
    """
    wanted = _target(repo_id, revision)
    if not diff.is_low_rank:
        raise FormatError(
            f"only a LoRA can be pushed to {repo_id}; make one of the diff first:"
            " weightdiff extract BASE FINETUNED OUT --rank 64"
        )
    base = base or diff.base
    with tempfile.TemporaryDirectory() as temporary:
        shared = WeightDiff(diff.modules, base, diff.meta)
        folder = write_peft(shared, Path(temporary) / "diff")
        atomic_write_text(folder / CARD, diff_card(diff, base, repo_id))
        return _upload(folder, wanted, private, message or "Weight diff")


def _target(repo_id: str, revision: str | None) -> HubName:
    """Return where to upload to."""
    found = HubName.parse(repo_id)
    if found is None or found.repo != repo_id:
        raise FormatError(f"{repo_id} is no repository on the Hub; give owner/name")
    return HubName(found.repo, revision=revision)


def _upload(folder: Path, wanted: HubName, private: bool, message: str) -> str:
    """Commit a folder's files to a repository, which is made if need be; return its URL."""
    with hub_errors(wanted, doing="write"):
        from huggingface_hub import HfApi

        api = HfApi()
        url = str(api.create_repo(wanted.repo, private=private, exist_ok=True))
        if private and api.model_info(wanted.repo).private is False:
            raise FormatError(
                f"{wanted.repo} is public on the Hub, and a private upload was asked for; give another name,"
                " or ask for a public one (private=False, --public)"
            )
        if wanted.revision:
            api.create_branch(wanted.repo, branch=wanted.revision, exist_ok=True)
        api.upload_folder(
            repo_id=wanted.repo, folder_path=folder, revision=wanted.revision, commit_message=message
        )
    return f"{url}/tree/{wanted.revision}" if wanted.revision else url
