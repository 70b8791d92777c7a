"""The exception tree.

Every error a user can cause or meet derives from :class:`WherefromError`; its message is one line
that says what was given, what is allowed and what to do next. The command line prints that line
and exits with status 1.
"""

from __future__ import annotations

__all__ = [
    "CorpusError",
    "CurvatureError",
    "EvaluationError",
    "ExecutionError",
    "FilterError",
    "IndexBusyError",
    "IndexExistsError",
    "IntegrityError",
    "MismatchError",
    "MissingExtraError",
    "ModelError",
    "NotAnIndexError",
    "QueryError",
    "StorageError",
    "UnfinishedIndexError",
    "WherefromError",
]


class WherefromError(Exception):
    """Base class of everything that wherefrom raises on purpose."""


class CorpusError(WherefromError):
    """The documents cannot be read or indexed (missing, empty, malformed, duplicate ids, ...)."""


class ModelError(WherefromError):
    """The model cannot be loaded or differentiated (unsupported layer, pattern, NaN loss, ...)."""


class CurvatureError(WherefromError):
    """A curvature cannot be fitted or does not serve this objective."""


class EvaluationError(WherefromError):
    """An evaluation is not possible or would not be sound (too few subsets, chance runs, ...)."""


class ExecutionError(WherefromError):
    """A build cannot be carried out here: memory ran out, workers died, machines are missing."""


class QueryError(WherefromError):
    """A question is not well formed (empty completion, k <= 0, ...)."""


class FilterError(WherefromError):
    """A metadata filter names an unknown column, operator or a value of the wrong type."""


class NotAnIndexError(WherefromError):
    """The path is no wherefrom index, or one of another format version."""


class UnfinishedIndexError(WherefromError):
    """The path holds a build that was interrupted."""


class IndexExistsError(WherefromError):
    """The path to build at is taken."""


class IndexBusyError(WherefromError):
    """Another process is writing to the index."""


class MismatchError(WherefromError):
    """Model or tokenizer is not the one the index was built with."""


class IntegrityError(WherefromError):
    """Stored bytes differ from their digest."""


class StorageError(WherefromError):
    """The disk refused a read or a write (full, read-only, ...)."""


class MissingExtraError(WherefromError):
    """An optional dependency is not installed; the message holds the pip line."""
