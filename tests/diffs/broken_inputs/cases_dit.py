"""Releases of DIT: pickles and index.csv."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from corpus import (
    DOWN,
    HEADER,
    HUGE,
    LONG,
    MARK,
    UP,
    Hostile,
    Q,
    add,
    case,
    item,
    release,
    saved,
    stored,
    weights,
    with_pickle,
    written,
)

PTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "that_runs_code": (lambda f: [item({Q: (UP.T, DOWN.T)}, Hostile(f / MARK))], "never unpickled"),
    "of_a_text": (lambda _: "text", "holds a str, neither"),
    "of_nothing": (lambda _: [], "there are none"),
    "of_numbers": (lambda _: [1, 2], "are no dicts with weight_diff"),
    "of_a_swapped_pair": (lambda _: stored(UP, DOWN), "save them as an adapter"),
    "of_ranks_that_disagree": (lambda _: stored(UP.T, torch.ones(3, 5)), "share no rank"),
    "of_three_dimensions": (lambda _: stored(UP.T[None]), "is no pair of matrices"),
    "of_integers": (lambda _: stored(UP.T.int()), "must be floating point"),
    "of_eight_bit_floats": (lambda _: stored(UP.T.to(torch.float8_e5m2)), "must have 16 bits or more"),
    "of_nan": (lambda _: stored(UP.T * float("nan")), "NaN or infinity"),
    "of_a_sparse_tensor": (lambda _: stored(UP.T.to_sparse()), "is sparse"),
    "of_an_expanded_tensor": (lambda _: stored(torch.ones(1).expand(2, HUGE)), "sparse or larger"),
    "of_a_shell": (lambda _: stored(torch.ones(2, HUGE, device="meta")), "sparse or larger"),
    "of_a_whole_state": (lambda _: [item(weights())], "give the base"),
    "of_a_megabyte_name": (lambda _: stored(UP.T[0], name=LONG), "is no pair of matrices"),
    "of_a_megabyte_topic": (lambda _: [*stored(), item({}, LONG), item({}, LONG)], "choose one by entry"),
    "of_a_name_with_escapes": (lambda _: stored(name="q\n\x1b[31m"), "names modules"),
}
for name, (value, says) in PTS.items():
    add(f"dit_{name}", lambda folder, value=value: saved(folder / "d.pt", value(folder)), says)


@case("must be floating point")
def dit_of_a_quantized_tensor(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they will go
        packed = torch.quantize_per_tensor(UP.T.contiguous(), 0.1, 0, torch.qint8)
        return saved(folder / "d.pt", stored(packed))


def sized(folder: Path, size: int) -> Path:
    """An old-style file whose second number of the shape of A, 12345 when it was made, says `size`."""
    path = saved(folder / "d.pt", stored(torch.ones(1, 12345)), _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    first, second, third, fourth = data.split(b"M90")  # of its storage, its shape and its strides
    return written(path, first + b"M90" + second + b"J" + struct.pack("<i", size) + third + b"M90" + fourth)


@case("sparse or larger|cannot be read")
def dit_old_file_of_a_huge_tensor(folder: Path) -> Path:
    return sized(folder, 400_000_000)


@case(r"d\.pt cannot be read")
def dit_empty(folder: Path) -> Path:
    return written(folder / "d.pt", b"")


@case(r"d\.pt cannot be read")
def dit_cut(folder: Path) -> Path:
    path = saved(folder / "d.pt", stored())
    return written(path, path.read_bytes()[:-200])


@case("never unpickled")
def dit_bare_hostile_pickle(folder: Path) -> Path:
    return written(folder / "d.pt", pickle.dumps([Hostile(folder / MARK)]))


@case("never unpickled")
def dit_hostile_pickle_within_a_zip(folder: Path) -> Path:
    return with_pickle(saved(folder / "d.pt", stored()), pickle.dumps([Hostile(folder / MARK)], 2))


@case("cannot be read")
def dit_zip_bomb(folder: Path) -> Path:
    """A pickle of a milliard and a half bytes, compressed to a thousandth."""
    block, blocks = 1 << 24, 96
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = once * blocks + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    name, sizes = b"archive/data.pkl", struct.pack("<III", 0, len(data), block * blocks)
    local = (
        struct.pack("<4sHHHHH", b"PK\3\4", 20, 0, 8, 0, 0) + sizes + struct.pack("<HH", len(name), 0) + name
    )
    central = struct.pack("<4sHHHHHH", b"PK\1\2", 20, 20, 0, 8, 0, 0) + sizes
    central += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    return written(folder / "d.pt", local + data + central + end)


INDICES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has no column"),
    "missing_columns": (b"lora_path,topic\nd.pt,cats\n", "has no column lora_idx; give"),
    "row_too_long": (HEADER + b"d.pt,0,cats,1,2,3\n", "not as many fields"),
    "row_too_short": (HEADER + b"d.pt,0\n", "not as many fields"),
    "nul_bytes": (HEADER + b"d\0.pt,0,cats,1\n", r"index\.csv"),
    "no_utf8": (HEADER + b"d.pt,0,\xff\xfe,1\n", "cannot be read as CSV"),
    "huge_field": (HEADER + b"d.pt,0," + b"x" * 200_000 + b",1\n", "cannot be read as CSV"),
    "open_quote": (HEADER + b'd.pt,0,"cats,1\n', "cannot be read as CSV"),
    "negative_entry": (HEADER + b"d.pt,-1,cats,1\n", "no count; download"),
    "huge_entry": (HEADER + b"d.pt," + b"9" * 18 + b",cats,1\n", "entry 9+ is not there"),
    "entry_of_other_digits": (HEADER + "d.pt,①,cats,1\n".encode(), "no count; download"),
    "absolute_path": (HEADER + b"/etc/passwd,0,cats,1\n", "outside the folder"),
    "path_upwards": (HEADER + b"../../d.pt,0,cats,1\n", "outside the folder"),
    "path_of_windows": (HEADER + b"C:\\d.pt,0,cats,1\n", "outside the folder"),
    "path_with_escapes": (HEADER + b'"\x1b[31m\n.pt",0,cats,1\n', "outside the folder"),
    "path_of_a_megabyte": (HEADER + b"p" * 100_000 + b",0,cats,1\n", "is no file; download"),
    "missing_file": (HEADER + b"gone.pt,0,cats,1\n", r"gone\.pt is no file; download"),
    "another_topic": (HEADER + b"d.pt,0,dogs,1\n", "has the topic 'cats'"),
    "long_topic": (HEADER + b"d.pt,0," + b"t" * 100_000 + b",1\n", "has the topic 'cats'"),
}
for name, (data, says) in INDICES.items():
    add(f"dit_index_{name}", lambda folder, data=data: release(folder, data), says)


@case("not as many fields")
def dit_index_of_ninety_megabytes(folder: Path) -> Path:
    return release(folder, HEADER + b"x\n" * 45_000_000)


@case("outside the folder")
def dit_index_link_outside(folder: Path) -> Path:
    path = release(folder, HEADER + b"link.pt,0,cats,1\n")
    (path / "link.pt").symlink_to(saved(folder / "out.pt", stored()))
    return path


@case(r"pipe\.pt is no file")
def dit_index_of_a_pipe(folder: Path) -> Path:
    path = release(folder, HEADER + b"pipe.pt,0,cats,1\n")
    os.mkfifo(path / "pipe.pt")
    return path


@case("is no path|is no file")
def dit_index_of_a_circle_of_links(folder: Path) -> Path:
    path = release(folder, HEADER + b"loop.pt,0,cats,1\n")
    (path / "loop.pt").symlink_to("loop.pt")
    return path
