"""The closed tree of errors that weightdiff raises on purpose.

Every message is one line: what is wrong, where, and what to do next. The CLI prints the message and
leaves with `exit_code`; anything outside this tree is a bug and keeps its traceback.
"""

from __future__ import annotations

_LONGEST, _HEAD, _TAIL = 1000, 600, 390


class WeightDiffError(Exception):
    """Root of the tree; catch it to catch everything that weightdiff raises on purpose.

    Attributes:
        exit_code: status with which the command line leaves when this error reaches it.
    """

    exit_code: int = 2

    def __init__(self, message: str) -> None:
        """Store the message as `one_line` shows it: what files say about themselves may be in it."""
        super().__init__(one_line(message))


class FormatError(WeightDiffError):
    """A file or folder is not what it should be: no adapter, truncated, or of an unsupported kind."""


class BaseNeededError(FormatError):
    """What a file holds is a change only against the base, and no base was given."""


class BaseMismatchError(WeightDiffError):
    """A weight diff belongs to another base model: modules are unknown or have other shapes."""


class NonFiniteError(WeightDiffError):
    """A tensor holds NaN or infinity; the modules are named."""


class StoreError(WeightDiffError):
    """A DiffStore is missing, damaged, or asked for something it does not hold."""


class QuestionError(WeightDiffError):
    """A question cannot be asked: it is empty, too long, or of an unknown kind."""


class InterpreterError(WeightDiffError):
    """An interpreter folder is incomplete, or does not fit the base it is put on."""


class MemoryShortError(WeightDiffError):
    """There is not memory enough for the smallest part that a batch can be computed in."""


class MissingDependencyError(WeightDiffError):
    """An optional dependency is not installed; the message carries the install line.

    Attributes:
        package: what could not be imported.
        extra: the extra of weightdiff that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        """Store the names and build the message.

        Args:
            package: name of the missing package, as imported.
            extra: name of the extra that installs it.
        """
        self.package = package
        self.extra = extra
        super().__init__(f'{package} is not installed: run  pip install "weightdiff[{extra}]"')

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str]]:
        """Pickle by the two arguments, so that worker processes can pass the error on."""
        return (type(self), (self.package, self.extra))


def one_line(message: str) -> str:
    """Return a message that fits one line of a terminal and cannot steer it.

    Line breaks become spaces, other characters that cannot be printed U+FFFD, and the middle of what is
    longer than 1000 characters is left out: what is wrong comes first, and what to do last.
    """
    if len(message) > _LONGEST:
        message = f"{message[:_HEAD]} … {message[-_TAIL:]}"
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in message)
