"""Cold start: what a command line process can leave out that a library must not."""

from __future__ import annotations

import gc
import os
import sys
from importlib.util import find_spec, module_from_spec

__all__ = ["prepare_process"]

# transformers and its tokenizers read these when they are imported. Nothing is ever downloaded, and
# the terminal belongs to the command.
_LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_REST_CLIENT = "lance_namespace_urllib3_client"


def prepare_process() -> None:
    """Set up this process before anything heavy is imported."""
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    # Importing torch and its like makes a million objects and drops none of them. To look for
    # garbage after every 700, as is the default, takes a fifth of a cold start.
    gc.set_threshold(100_000, 20, 20)
    _leave_out_rest_client()


def _leave_out_rest_client() -> None:
    """Keep LanceDB from importing the REST client of remote namespaces.

    Its hundreds of generated methods are compiled by pydantic as they are imported: a second, for
    servers that this program never speaks to. The package stands in place without its initialiser
    having run, so that its models, which LanceDB does name, are found as ever.
    """
    if _REST_CLIENT in sys.modules:
        return
    spec = find_spec(_REST_CLIENT)
    if spec is not None:
        sys.modules[_REST_CLIENT] = module_from_spec(spec)
