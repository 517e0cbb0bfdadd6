"""Atomic files and folders: whole or absent, and manifests that notice changes."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from weightdiff import artifacts
from weightdiff.errors import FormatError


def test_files_are_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "a.txt"
    assert artifacts.atomic_write_text(path, "é") == path
    artifacts.atomic_write_json(path, {"a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n'
    assert [item.name for item in path.parent.iterdir()] == ["a.txt"]
    previous = os.umask(0o022)
    try:
        artifacts.atomic_write_bytes(path, b"x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ValueError, match="stop"), artifacts.atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ValueError("stop")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.atomic_write_json(path, float("nan"))


def test_folders_appear_whole(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(ValueError, match="stop"), artifacts.atomic_directory(target) as folder:  # noqa: PT012
        (folder / "a").write_text("1")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    target.mkdir()  # an empty folder is free
    with artifacts.atomic_directory(target) as folder:
        (folder / "a").write_text("1")
        assert not (target / "a").exists()
    assert (target / "a").read_text() == "1"


def test_taken_folders_are_refused_unless_asked(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(FormatError, match="exists and is not empty"), artifacts.atomic_directory(target):
        pass
    with artifacts.atomic_directory(target, overwrite=True) as folder:
        (folder / "new").write_text("2")
    assert [item.name for item in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FormatError, match="is a file"), artifacts.atomic_directory(target / "new"):
        pass


def test_an_overwrite_that_fails_keeps_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("1")
    real = os.replace

    def replace(source: Path, destination: Path) -> None:
        if (Path(source) / "new").exists():
            raise OSError("disk full")
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with (
        pytest.raises(OSError, match="disk full"),
        artifacts.atomic_directory(target, overwrite=True) as folder,
    ):
        (folder / "new").write_text("2")
    assert [item.name for item in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_manifests_notice_missing_and_changed_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_text("1")
    (tmp_path / "sub" / "b").write_text("2")
    (tmp_path / ".tmp-left").write_text("3")
    with pytest.raises(FormatError, match=r"no manifest\.json, so it was not completely written"):
        artifacts.check_manifest(tmp_path)
    artifacts.write_manifest(tmp_path, {"made_by": "test"})
    manifest = artifacts.check_manifest(tmp_path)
    assert manifest["made_by"] == "test"
    assert set(manifest["files"]) == {"a", "sub/b"}
    assert manifest["files"]["a"]["sha256"] == artifacts.sha256_file(tmp_path / "a")
    (tmp_path / "README").write_text("later")
    artifacts.check_manifest(tmp_path)
    (tmp_path / "a").write_text("changed")
    (tmp_path / "sub" / "b").unlink()
    with pytest.raises(FormatError, match=r"missing: sub/b; changed: a"):
        artifacts.check_manifest(tmp_path)
    with pytest.raises(ValueError, match="'files'"):
        artifacts.write_manifest(tmp_path, {"files": 1})


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"files": ["a"]}), "{}"])
def test_broken_manifests_are_said(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(FormatError, match="is not a manifest"):
        artifacts.check_manifest(tmp_path)


def test_leftovers_are_removed(tmp_path):
    (tmp_path / ".tmp-file").write_text("x")
    (tmp_path / ".tmp-folder").mkdir()
    (tmp_path / "kept").write_text("x")
    assert artifacts.remove_leftovers(tmp_path) == [".tmp-file", ".tmp-folder"]
    assert [item.name for item in tmp_path.iterdir()] == ["kept"]


def test_settings_that_differ_are_named():
    made = {"steps": 100, "weights": {"news": 0.3, "null": 0.2}, "gone": True}
    assert artifacts.differing(made, made) == ""
    wanted = {"steps": 300, "weights": {"news": 0.5, "null": 0.2}, "new": 1}
    assert artifacts.differing(made, wanted, "tuning.") == (
        "tuning.steps 100, not 300; tuning.weights.news 0.3, not 0.5; tuning.gone True, not unset; and 1 more"
    )
