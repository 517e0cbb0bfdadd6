"""What weightdiff shows in inspect_ai besides answers: errors of one line, as inspect's own, and no bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from inspect_ai._util.error import PrerequisiteError
from rich.markup import escape

from weightdiff.errors import WeightDiffError


@contextmanager
def one_line() -> Iterator[None]:
    """Raise what weightdiff raises on purpose as what inspect prints plainly.

    Raises:
        PrerequisiteError: in place of a `WeightDiffError`, with its message.
    """
    try:
        yield
    except WeightDiffError as error:
        raise PrerequisiteError(escape(str(error))) from error


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep the model library's progress bars out of inspect's display."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
