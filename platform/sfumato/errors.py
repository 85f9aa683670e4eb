"""Errors that users see: one line with what is wrong, what was given, and how to fix it.

The command line prints these without a traceback. `exit_status` is the process's status: 2 for bad
input, 1 for work that failed.
"""

from __future__ import annotations


class SfumatoError(Exception):
    """Base of every error that is shown to the user."""

    exit_status = 1


class ConfigError(SfumatoError):
    """The recipe, an option or an argument is wrong."""

    exit_status = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, ...]]:
        return (type(self), self.problems)


class CapabilityError(ConfigError):
    """A valid combination that a strategy or a machine does not support."""


class DataError(SfumatoError):
    """Data that is missing, damaged, or does not match its manifest."""

    exit_status = 2


class CheckpointError(SfumatoError):
    """A checkpoint that is missing, incomplete or damaged, or belongs to another recipe."""


class TrainingError(SfumatoError):
    """Training stopped: a non-finite loss, or workers that kept failing."""


class WorkersLost(TrainingError):
    """Training workers were lost more often than the recipe allows: another attempt may well succeed."""


class Interrupted(SfumatoError):
    """The user pressed Ctrl-C; the message says how to resume."""

    exit_status = 130


INSTALL = "install Sfumato again (pip install -c constraints.txt -e . in its repository)"
"""What to do about a package that belongs to every installation."""


def with_extra(extra: str) -> str:
    """How to install one of the package's extras: from its repository, since no package index has it."""
    return f"pip install -c constraints.txt -e '.[{extra}]' in Sfumato's repository"
