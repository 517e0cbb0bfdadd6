"""Diffs and folders by Hub name, from a Hub on this machine."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from weightdiff.diffs.formats.dit_release import write_dit
from weightdiff.diffs.formats.peft import write_peft
from weightdiff.diffs.hub import HubName, find_copy, local_copy
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import FormatError

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
LOGIN = "hf auth login"


@pytest.fixture
def diff(random_diff, base):
    return random_diff(scale=0.5, base=base, meta={"note": "mine"})


@pytest.fixture
def folder(diff, tmp_path):
    return write_peft(diff, tmp_path / "adapter")


@pytest.fixture
def line():
    """Loads what must fail and returns its one line."""

    def call(*arguments, **options):
        with pytest.raises(FormatError) as caught:
            WeightDiff.load(*arguments, **options)
        message = str(caught.value)
        assert "\n" not in message
        return message

    return call


def _same(a, b):
    assert a.modules.keys() == b.modules.keys()
    for name, m in a.modules.items():
        other = b.modules[name]
        assert (m.scale, m.down.dtype) == (other.scale, other.down.dtype)
        assert torch.equal(m.down, other.down)
        assert torch.equal(m.up, other.up)


def test_a_diff_by_its_hub_name_is_the_diff_bit_by_bit(hub, diff, folder):
    sha = hub.put_folder("me/lora", folder)
    loaded = WeightDiff.load("me/lora")
    _same(loaded, diff)
    assert loaded.base == diff.base
    assert loaded.meta["note"] == "mine"
    assert loaded.meta["source"] == f"me/lora@{sha}"
    local = local_copy("me/lora")
    for name in ADAPTER:
        assert (local / name).read_bytes() == (folder / name).read_bytes()
    assert WeightDiff.load(loaded.meta["source"]).meta == loaded.meta


def test_only_what_is_read_is_downloaded(hub, folder):
    hub.put_folder("me/lora", folder)
    beside = {"README.md", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "merges.txt"}
    others = {
        "adapter_model.bin",
        "pytorch_model.bin",
        "model.safetensors",
        "optimizer.pt",
        "training_args.bin",
        "picture.png",
        "model.gguf",
        "checkpoint-9/adapter_config.json",
        "checkpoint-9/adapter_model.safetensors",
    }
    hub.put("me/lora", {name: name.encode() for name in beside | others})
    WeightDiff.load("me/lora")
    assert hub.sent() == ADAPTER | beside
    assert len(hub.downloaded) == len(hub.sent())
    WeightDiff.load("me/lora")  # from the cache
    assert len(hub.downloaded) == len(hub.sent())


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            {"config.json", "model.safetensors", "consolidated.safetensors"},
            {"config.json", "model.safetensors"},
        ),
        (
            {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin"},
            {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
        ),
        (
            {"pytorch_model-1.bin", "pytorch_model.bin.index.json", "training_args.bin", "optimizer.pt"},
            {"pytorch_model-1.bin", "pytorch_model.bin.index.json"},
        ),
        ({"adapter_config.json", "adapter_model.bin"}, {"adapter_config.json", "adapter_model.bin"}),
        ({"weights [v1].safetensors", "weights v.safetensors.tmp"}, {"weights [v1].safetensors"}),
    ],
)
def test_weights_by_kind(hub, files, wanted):
    hub.put("me/model", {name: name.encode() for name in files})
    assert {f.name for f in local_copy("me/model").iterdir()} == wanted
    assert hub.sent() == wanted


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("me/many/runs/first", {}),
        ("me/many", {"subfolder": "runs/first"}),
        ("me/many", {"subfolder": "runs/first/"}),
        ("me/many/runs/first@main", {"subfolder": "runs/first", "revision": "main"}),
    ],
)
def test_a_subfolder(hub, diff, folder, random_diff, tmp_path, name, options):
    hub.put_folder("me/many", folder, "runs/first")
    other = write_peft(random_diff(seed=1), tmp_path / "other")
    sha = hub.put_folder("me/many", other, "runs/second")
    loaded = WeightDiff.load(name, **options)
    _same(loaded, diff)
    assert loaded.meta["source"] == f"me/many/runs/first@{sha}"
    assert hub.sent() == {f"runs/first/{file}" for file in ADAPTER}


@pytest.mark.parametrize("way", ["in the name", "beside it"])
def test_revisions(hub, diff, folder, random_diff, tmp_path, way):
    def load(revision):
        return (
            WeightDiff.load(f"me/lora@{revision}")
            if way == "in the name"
            else WeightDiff.load("me/lora", revision=revision)
        )

    first = hub.put_folder("me/lora", folder)
    later = random_diff(seed=2)
    second = hub.put_folder("me/lora", write_peft(later, tmp_path / "later"))
    branch = random_diff(seed=3)
    third = hub.put_folder("me/lora", write_peft(branch, tmp_path / "branch"), branch="refs/pr/1")
    for revision, sha, expected in (
        ("main", second, later),
        (first, first, diff),
        ("refs/pr/1", third, branch),
    ):
        loaded = load(revision)
        _same(loaded, expected)
        assert loaded.meta["source"] == f"me/lora@{sha}"


def test_a_release_of_the_authors_by_folder_and_by_file(hub, random_diff, tmp_path):
    rows = [random_diff(seed=i) for i in range(2)]
    entries = [(rows[0], "opera", None, "train"), (rows[1], "chess", None, "train")]
    write_dit(entries, tmp_path / "release" / "topics" / "model-4b")
    release = tmp_path / "release"
    hub.put_folder("them/loras", release)
    (pickle,) = (f.relative_to(release).as_posix() for f in release.rglob("*.pt"))
    found = WeightDiff.load(f"them/loras/{pickle}", entry=1)
    assert hub.sent() == {pickle}
    again = WeightDiff.load("them/loras/topics/model-4b", entry="chess")
    assert hub.sent() == {pickle, "topics/model-4b/index.csv"}
    for loaded in (found, again):
        for name, m in rows[1].modules.items():
            torch.testing.assert_close(loaded.modules[name].dense(), m.dense())


def test_a_model_against_its_base(hub, tiny_model, tmp_path):
    base, tuned = tiny_model(), tiny_model()
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight += 0.5
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    sha = hub.put_folder("me/tuned", tmp_path / "tuned")
    loaded = WeightDiff.load("me/tuned", base=tmp_path / "base")
    (change,) = loaded.modules.values()
    assert isinstance(change, DenseDelta)
    before, after = (load_file(tmp_path / x / "model.safetensors") for x in ("base", "tuned"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(change.dense(), after[name] - before[name])
    assert loaded.meta["source"] == f"me/tuned@{sha}"


def test_a_local_path_goes_first_and_as_it_is(hub, folder, monkeypatch, line):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "me").mkdir()
    folder.rename(folder.parent / "me" / "lora")
    assert str(local_copy("me/lora")) == "me/lora"
    assert find_copy("me/lora").source is None
    assert "source" not in WeightDiff.load("me/lora").meta
    for option in ({"revision": "main"}, {"subfolder": "x"}):
        assert "exists here, and a local path has no revision" in line("me/lora", **option)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("me/lora", ("me/lora", "", None)),
        ("me/lora@v1", ("me/lora", "", "v1")),
        ("me/lora@refs/pr/3", ("me/lora", "", "refs/pr/3")),
        ("me/lora/a/b-c.d@v1", ("me/lora", "a/b-c.d", "v1")),
        ("hidden-topic/qwen3-4B.x_y/f", ("hidden-topic/qwen3-4B.x_y", "f", None)),
    ],
)
def test_names(name, parts):
    found = HubName.parse(name)
    assert (found.repo, found.subfolder, found.revision) == parts
    assert str(found) == name


NO_NAMES = """
    lora | /me/lora | ./me/lora | ../me/lora | me//lora | me/lora/ | me/lora/../x | me/lora/. | ~/me/lora
    | me/lo ra | me/lora@ | me--x/lora | me/a..b | -me/lora | me/lora. | C:\\me\\lora | me/lora::3
"""


@pytest.mark.parametrize("name", [name.strip() for name in NO_NAMES.split("|")])
def test_what_is_no_name_is_a_missing_path(hub, line, name):
    assert HubName.parse(name) is None
    known = "a local file or folder, or a Hub name (owner/name, owner/name/folder, owner/name@revision)"
    assert line(name) == f"{name} does not exist; give {known}"
    assert hub.asked == []


def test_two_revisions_or_subfolders_are_refused(hub, line):
    assert "names the revision v1, and revision='v2' is given; give one" in line("me/lora@v1", revision="v2")
    assert "names the subfolder a, and subfolder='b'" in line("me/lora/a", subfolder="b")
    assert "'../x' is no folder of a repository" in line("me/lora", subfolder="../x")
    assert hub.asked == []


def test_no_such_repository(hub, line):
    said = line("me/nowhere")
    assert said == (
        "me/nowhere does not exist here, and the Hub shows no repository me/nowhere; check the name, or log"
        f" in if it is private: {LOGIN}"
    )


def test_a_private_repository_needs_a_token(hub, folder, line, diff, monkeypatch):
    hub.put_folder("me/secret", folder, private=True)
    assert f"shows no repository me/secret; check the name, or log in if it is private: {LOGIN}" in line(
        "me/secret"
    )
    monkeypatch.setenv("HF_TOKEN", hub.token)
    _same(WeightDiff.load("me/secret"), diff)


def test_a_gated_repository(hub, folder, line, diff, monkeypatch):
    hub.put_folder("me/gated", folder, gated=True)
    assert f"me/gated is gated on the Hub; accept its terms on its page there, then log in: {LOGIN}" in line(
        "me/gated"
    )
    monkeypatch.setenv("HF_TOKEN", hub.token)
    _same(WeightDiff.load("me/gated"), diff)


def test_no_such_revision(hub, folder, line):
    hub.put_folder("me/lora", folder)
    said = line("me/lora", revision="v9")
    assert said == (
        "me/lora@v9 does not exist here, and me/lora has no revision v9 on the Hub; give one of its branches,"
        " tags or commits"
    )


def test_no_such_subfolder_names_what_is_there(hub, folder, line):
    hub.put_folder("me/many", folder, "runs/first")
    hub.put("me/many", {"README.md": b"x"})
    said = line("me/many/runs/third")
    assert said == (
        "me/many/runs/third does not exist here, and me/many has no folder runs/third on the Hub;"
        " me/many/runs holds first/: give one of these"
    )
    assert "me/many holds README.md, runs/: give one of these" in line("me/many", subfolder="walks/first")


def test_a_folder_without_weights_names_those_that_have_some(hub, folder, line):
    hub.put("me/many", {"README.md": b"x", "notes/a.md": b"x"})
    assert line("me/many") == (
        "me/many holds no adapter, model or DIT release, only README.md, notes/; give another repository"
    )
    for run in ("first", "second"):
        hub.put_folder("me/many", folder, f"runs/{run}")
    assert "only README.md, notes/, runs/; give one of me/many/runs/first, me/many/runs/second" in line(
        "me/many"
    )
    assert "only first/, second/; give one of me/many/runs/first" in line("me/many/runs")
    assert hub.downloaded == []


def test_a_file_of_a_folder(hub, folder, line):
    hub.put_folder("me/many", folder, "runs/first")
    said = line("me/many/runs/first/adapter_model.safetensors@main")
    assert said.endswith("is a file; give the folder that it is in, me/many/runs/first@main")


def test_an_empty_repository(hub, line):
    hub.put("me/empty", {})
    assert "me/empty has no files on the Hub; give another repository" in line("me/empty")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, f"status 401 (not today); log in with a token that may read it: {LOGIN}"),
        (403, f"status 403 (not today); ask its owner, or log in with a token that may read it: {LOGIN}"),
        (418, "status 418 (not today); check what was asked for"),
        (429, "status 429 (not today): too many requests; wait some minutes"),
        (503, "status 503 (not today); try again later"),
    ],
)
def test_other_answers_are_told_with_their_status(hub, line, status, said):
    hub.refuse = status
    assert f"me/lora does not exist here, and the Hub answers with {said}" in line("me/lora")


def test_offline_and_nothing_cached(hub, line, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert line("me/lora") == (
        "me/lora does not exist here, and the Hub is switched off (offline mode); unset HF_HUB_OFFLINE and"
        " TRANSFORMERS_OFFLINE"
    )
    assert hub.asked == []


def test_no_connection_and_nothing_cached(hub, line):
    hub.stop()
    said = line("me/lora")
    assert "me/lora does not exist here, and the Hub cannot be reached (" in said
    assert said.endswith("check the connection and try again")


@pytest.mark.parametrize("why", ["offline", "no connection", "broken"])
def test_without_the_hub_the_cache_is_taken(hub, diff, folder, line, monkeypatch, why):
    from huggingface_hub import constants

    hub.put_folder("me/many", folder, "runs/first")
    sha = hub.put("me/many", {"runs/second/model.safetensors": b"x"})
    WeightDiff.load("me/many/runs/first")
    if why == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif why == "broken":
        hub.refuse = 500
    else:
        hub.stop()
    again = WeightDiff.load("me/many/runs/first")
    _same(again, diff)
    assert again.meta["source"] == f"me/many/runs/first@{sha}"
    said = {"offline": "offline mode", "no connection": "cannot be reached", "broken": "status 500"}[why]
    assert said in line("me/many/runs/second")  # which was not downloaded


def test_a_cache_that_holds_a_part_says_so(hub, line, monkeypatch):
    from huggingface_hub import constants

    names = ("config.json", "model-1.safetensors", "model-2.safetensors")
    hub.put("me/model", {name: name.encode() for name in names})
    root = local_copy("me/model")
    (root / "model-1.safetensors").unlink()
    (root / "model-2.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "holds no adapter, model or DIT release, only config.json" in line("me/model")


def test_a_download_that_breaks_off(hub, folder, line, monkeypatch):
    import types

    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "time", types.SimpleNamespace(sleep=lambda _: None))  # between its own retries
    hub.put_folder("me/lora", folder)
    hub.broken = {"adapter_model.safetensors"}
    said = line("me/lora")
    assert said.startswith(
        "me/lora does not exist here, and the Hub cannot be reached, and its cache here lacks"
    )
    hub.broken = set()
    assert WeightDiff.load("me/lora").modules
