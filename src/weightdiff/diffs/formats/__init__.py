"""Readers and writers of weight diffs on disk: one file a format, each registers itself; see `registry`."""

from weightdiff.diffs.formats.registry import Reader, readers, register, sniff

__all__ = ["Reader", "readers", "register", "sniff"]
