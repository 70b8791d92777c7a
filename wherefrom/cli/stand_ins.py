"""Letters that a terminal's encoding lacks: each is shown as something as wide that it has."""

from __future__ import annotations

import codecs

from rich.cells import cell_len

__all__ = ["STAND_INS"]

STAND_INS = "wherefrom-stand-ins"
"""Error handler for encoding: for ``errors=`` of a stream."""

_DRAWN = str.maketrans("…–·«»│─█▓▒░", "~-|<>|-#=:.")
_UNKNOWN = "?"


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """Keep tables straight: bars stay bars, and anything else becomes question marks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end].translate(_DRAWN)
    shown = (one if one.isascii() else _UNKNOWN * cell_len(one) for one in missing)
    return "".join(shown), error.end


codecs.register_error(STAND_INS, _stand_in)
