"""Where the service logs: requests, a line of JSON each, and failures, in full."""

from __future__ import annotations

import logging

__all__ = ["ACCESS_LOG", "FAILURES"]

ACCESS_LOG = logging.getLogger("wherefrom.serve.access")
FAILURES = logging.getLogger("wherefrom.serve.failures")
