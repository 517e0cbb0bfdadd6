"""Names on the Hugging Face Hub: parsed, downloaded as far as weightdiff reads, their failures put in words.

A path that exists here always goes before the Hub. What the files mean is the readers' business; uploads are
in `methods.sharing`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from weightdiff.errors import FormatError

HUB_FORM = "a Hub name (owner/name, owner/name/folder, owner/name@revision)"

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_FORM = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?P<subfolder>(?:/(?!\.\.?(?:[/@]|$))[^/@]+)*)(?:@(?P<revision>.+))?"
)
_ADAPTER_CONFIG, _RELEASE_INDEX, _PICKLED_DIFFS = "adapter_config.json", "index.csv", ".pt"
_BESIDE = ("*.json", "*.csv", "*.jinja", "*.model", "*.txt", "README.md")
# The first pattern that fits anything is the one that is read, so pickles come last.
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_WEIGHTS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
_SECONDS = 10
_SHOWN = 8
_LONGEST = 300


@dataclass(frozen=True)
class HubName:
    """A place on the Hub.

    Attributes:
        repo: repository, "owner/name".
        subfolder: a folder or file in it, "" for its top.
        revision: branch, tag or commit; None for the default branch.
    """

    repo: str
    subfolder: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubName | None:
        """Read owner/name, with /folder and @revision (which comes last) where given; None for no name."""
        match = _FORM.fullmatch(name)
        if match is None or "--" in match["repo"] or ".." in match["repo"]:  # which the Hub does not allow
            return None
        return cls(match["repo"], match["subfolder"].strip("/"), match["revision"])

    def __str__(self) -> str:
        """Return the name in the form that `parse` reads."""
        folder = f"/{self.subfolder}" if self.subfolder else ""
        return f"{self.repo}{folder}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class LocalCopy:
    """A path on this machine.

    Attributes:
        path: the file or folder.
        source: the Hub name that it was downloaded from, with the commit as its revision; None for a path
            that was there.
    """

    path: Path
    source: str | None = None


def local_copy(
    name: str | os.PathLike[str], revision: str | None = None, subfolder: str | None = None
) -> Path:
    """Return the local path of a path or Hub name; see `find_copy`."""
    return find_copy(name, revision, subfolder).path


def find_copy(
    name: str | os.PathLike[str], revision: str | None = None, subfolder: str | None = None
) -> LocalCopy:
    """Find a local path, or download what weightdiff reads of a Hub name into the Hub's cache.

    Of a folder on the Hub come its own JSON, CSV, README and tokenizer files and its weights: those of the
    adapter, else the .pt files below it if it is a DIT release, else those of the model; pickled weights only
    where there is no safetensors file. Of a name that ends in .pt comes that file alone. Where the Hub cannot
    be reached, what is in the cache is taken.

    Args:
        name: an existing path, or "owner/name", "owner/name/folder", either with "@revision" at its end.
        revision: branch, tag or commit, instead of "@revision".
        subfolder: a folder or .pt file in the repository, instead of "/folder".

    Raises:
        FormatError: there is no such path, repository, revision or folder, nothing that can be read is there,
            the Hub refuses it or cannot be reached; or a revision or subfolder is given for a local path.
    """
    text = os.fspath(name)
    if os.path.exists(text):  # which raises for no name, as Path.exists does for a long one
        if revision or subfolder:
            raise FormatError(
                f"{text} exists here, and a local path has no revision and no subfolder on the Hub; give the"
                " whole path alone, or call it where no such path exists"
            )
        return LocalCopy(Path(text))
    wanted = _wanted(text, revision, subfolder)
    names, online = _listed(wanted)
    patterns = _patterns(wanted, names)
    with hub_errors(wanted):
        root = _snapshot(wanted, patterns, online)
    return LocalCopy(root / wanted.subfolder, str(HubName(wanted.repo, wanted.subfolder, root.name)))


@contextlib.contextmanager
def hub_errors(wanted: HubName, doing: str = "read") -> Generator[None, None, None]:
    """Turn every failure of the Hub and of the way to it into one `FormatError` that says what to do.

    Args:
        wanted: the name that is asked for.
        doing: "read" or "write", what a token must allow.

    Raises:
        FormatError: anything failed.
    """
    try:
        yield
    except FormatError:
        raise
    except (*_transport_errors(), OSError, ValueError, RuntimeError) as error:
        raise FormatError(_in_words(error, wanted, doing)) from error


def _wanted(text: str, revision: str | None, subfolder: str | None) -> HubName:
    """Return the place that a name and the arguments beside it mean."""
    name = HubName.parse(text)
    if name is None:
        raise FormatError(f"{text} does not exist; give a local file or folder, or {HUB_FORM}")
    for what, inside, beside in (
        ("revision", name.revision, revision),
        ("subfolder", name.subfolder, (subfolder or "").strip("/")),
    ):
        if inside and beside and inside != beside:
            raise FormatError(f"{text} names the {what} {inside}, and {what}={beside!r} is given; give one")
    folder = name.subfolder or (subfolder or "").strip("/")
    found = HubName.parse(f"{name.repo}/{folder}" if folder else name.repo)
    if found is None or found.revision:
        raise FormatError(f"{folder!r} is no folder of a repository; give one such as runs/first")
    return HubName(name.repo, folder, name.revision or revision)


def _listed(wanted: HubName) -> tuple[list[str], bool]:
    """Return the names of a repository's files, and whether they come from the Hub and not from its cache."""
    with hub_errors(wanted):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            info = HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=_SECONDS)
            return [file.rfilename for file in info.siblings or ()], True
        except (*_transport_errors(), OSError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            try:
                root = _snapshot(wanted, [], online=False)
            except LocalEntryNotFoundError:
                raise error from None
            if not (root / wanted.subfolder).exists():
                raise
            return [f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file()], False


def _snapshot(wanted: HubName, patterns: list[str], online: bool) -> Path:
    """Download what fits the patterns, or find it in the cache; return the repository's folder there."""
    import huggingface_hub

    download: Callable[..., str] = cast(Any, huggingface_hub).snapshot_download  # it is typed in part only
    return Path(
        download(wanted.repo, revision=wanted.revision, allow_patterns=patterns, local_files_only=not online)
    )


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the root of httpx's errors; which httpx it is changes with the version of the Hub's library."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)


def _patterns(wanted: HubName, names: Sequence[str]) -> list[str]:
    """Return which files to download, as exact names where they lie in the folder itself."""
    if wanted.subfolder in names:
        if wanted.subfolder.endswith(_PICKLED_DIFFS):
            return [glob.escape(wanted.subfolder)]
        raise FormatError(f"{wanted} is a file; give the folder that it is in, {_parent(wanted)}")
    prefix = wanted.subfolder + "/" if wanted.subfolder else ""
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not below:
        raise FormatError(_no_folder(wanted, names))
    here = [name for name in below if "/" not in name]
    weights = _weights(below)
    if not weights:
        raise FormatError(_no_weights(wanted, prefix, below))
    beside = [glob.escape(name) for name in here if any(fnmatch.fnmatchcase(name, kind) for kind in _BESIDE)]
    return [glob.escape(prefix) + pattern for pattern in [*beside, *weights]]


def _weights(below: Sequence[str]) -> list[str]:
    """Return the patterns of a folder's weights, out of the names of the files in it and below it."""
    here = [name for name in below if "/" not in name]
    if _RELEASE_INDEX in here and _ADAPTER_CONFIG not in here:
        return ["*" + _PICKLED_DIFFS] if any(name.endswith(_PICKLED_DIFFS) for name in below) else []
    kinds = _ADAPTER_WEIGHTS if _ADAPTER_CONFIG in here else _MODEL_WEIGHTS
    for kind in kinds:
        found = [glob.escape(name) for name in here if fnmatch.fnmatchcase(name, kind)]
        if found:
            return found
    return []


def _no_weights(wanted: HubName, prefix: str, below: Sequence[str]) -> str:
    """Say that a folder holds nothing to read, and which folders below it do."""
    readable: list[HubName] = []
    for folder in sorted({name.rpartition("/")[0] for name in below if "/" in name}):
        if _weights([name.removeprefix(folder + "/") for name in below if name.startswith(folder + "/")]):
            readable.append(HubName(wanted.repo, prefix + folder, wanted.revision))
    more = f" and {len(readable) - _SHOWN} more" if len(readable) > _SHOWN else ""
    todo = f"one of {', '.join(map(str, readable[:_SHOWN]))}{more}" if readable else "another repository"
    return f"{wanted} holds no adapter, model or DIT release, only {_entries(below)}; give {todo}"


def _no_folder(wanted: HubName, names: Sequence[str]) -> str:
    """Say which folder is missing, and what the nearest one above it holds."""
    above = _parent(wanted)
    while above.subfolder and not any(name.startswith(above.subfolder + "/") for name in names):
        above = _parent(above)
    prefix = above.subfolder + "/" if above.subfolder else ""
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    what = f"no folder {wanted.subfolder}" if wanted.subfolder else "no files"
    there = (
        f"; {above} holds {_entries(inside)}: give one of these" if inside else "; give another repository"
    )
    return f"{wanted} does not exist here, and {wanted.repo} has {what} on the Hub{there}"


def _parent(wanted: HubName) -> HubName:
    return HubName(wanted.repo, wanted.subfolder.rpartition("/")[0], wanted.revision)


def _entries(below: Sequence[str]) -> str:
    """Return a folder's files and folders, for a message."""
    tops = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in below})
    rest = f" and {len(tops) - _SHOWN} more" if len(tops) > _SHOWN else ""
    return ", ".join(tops[:_SHOWN]) + rest


def _in_words(error: Exception, wanted: HubName, doing: str) -> str:
    """Return one line on a failure: what, where, what to do."""
    from huggingface_hub import errors

    repo, said = wanted.repo, _one_line(error)
    if isinstance(error, errors.GatedRepoError):
        why = f"{repo} is gated on the Hub; accept its terms on its page there, then log in: hf auth login"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = f"the Hub shows no repository {repo}; check the name, or log in if it is private: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = (
            f"{repo} has no revision {wanted.revision} on the Hub; give one of its branches, tags or commits"
        )
    elif isinstance(error, errors.HfHubHTTPError):
        why = _status_in_words(error.response.status_code, _one_line(error.server_message), doing)
    elif isinstance(error, errors.OfflineModeIsEnabled):
        why = "the Hub is switched off (offline mode); unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        why = "the Hub cannot be reached, and its cache here lacks files; check the connection and try again"
    elif isinstance(error, errors.HFValidationError):
        why = f"{repo} is no name on the Hub ({said}); give owner/name"
    elif isinstance(error, (*_transport_errors(), ConnectionError)):
        why = f"the Hub cannot be reached ({said}); check the connection and try again"
    else:
        why = f"the transfer failed ({said}); mend that and try again"
    if doing == "read":
        return f"{wanted} does not exist here, and {why}"
    return f"{wanted} cannot be written: {why}"


def _status_in_words(status: int, said: str, doing: str) -> str:
    """Return what an HTTP status of the Hub means and what to do."""
    answer = f"the Hub answers with status {status}" + (f" ({said})" if said else "")
    if status == 401:
        return f"{answer}; log in with a token that may {doing} it: hf auth login"
    if status == 403:
        return f"{answer}; ask its owner, or log in with a token that may {doing} it: hf auth login"
    if status == 429:
        return f"{answer}: too many requests; wait some minutes, then try again"
    return f"{answer}; try again later" if status >= 500 else f"{answer}; check what was asked for"


def _one_line(value: object) -> str:
    """Return a text as one line of bounded length; for a text that says nothing, what kind of thing it is."""
    if value is None:
        return ""
    return " ".join(str(value).split())[:_LONGEST] or type(value).__name__
