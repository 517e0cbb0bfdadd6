"""What the base predicts is computed once for rows that come again, and is the same then."""

from __future__ import annotations

import pytest
import torch

from weightdiff.models.chat import Encoded
from weightdiff.training.teacher import Teacher

VOCABULARY = 5
A, B, C = Encoded([1, 2, 3, 4], 2), Encoded([1, 2, 3, 4], 3), Encoded([7, 8, 9], 1)


def said(row):
    """Numbers that belong to a row and its label alone."""
    return torch.tensor(
        [[100.0 * row.start + 10 * t + v for v in range(VOCABULARY)] for t in row.ids[row.start :]]
    )


@pytest.fixture
def read():
    """Every list of rows that was computed."""
    return []


@pytest.fixture
def teacher(read):
    def compute(rows):
        read.append(list(rows))
        return torch.cat([said(r) for r in rows])

    return lambda room=1 << 20: Teacher(compute, room)


def test_rows_come_in_their_order_and_are_read_once_in_a_batch(teacher, read):
    asked = [A, C, A, B, C]
    assert torch.equal(teacher().logits(asked), torch.cat([said(r) for r in asked]))
    assert read == [[A, C, B]]


def test_from_its_second_time_on_a_row_is_kept(teacher, read):
    t = teacher()
    for asked in ([A, B], [B, C], [B], [C, B], [C, B], [A]):
        assert torch.equal(t.logits(asked), torch.cat([said(r) for r in asked]))
    assert read == [[A, B], [B, C], [C], [A]]


def test_what_is_kept_is_no_part_of_what_was_given(teacher):
    t = teacher()
    t.logits([A])
    t.logits([A]).zero_()
    assert torch.equal(t.logits([A]), said(A))


def test_room_is_kept_to_and_what_was_used_longest_ago_goes_first(teacher, read):
    size = 4 * VOCABULARY
    t = teacher(4 * size)  # for A (two labels) and C (two labels), not for B beside them
    for row in (A, A, C, C):
        t.logits([row])
    assert t.size == 4 * size
    t.logits([A])
    for _ in range(2):
        t.logits([B])
    assert t.size == 3 * size
    read.clear()
    t.logits([A, B])
    assert read == []
    t.logits([C])
    assert read == [[C]]
    small = teacher(size)
    for _ in range(3):
        small.logits([A])
    assert (small.size, len(read)) == (0, 4)
