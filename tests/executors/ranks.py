"""The command line as a rank of torchrun: many shards, and a rank that may be killed.

    torchrun --nproc-per-node 2 ranks.py KILLED BUILD-ARGUMENTS...

``KILLED`` is the task in words at which rank 1 kills itself, or ``none``.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch
from builds import many_shards

from wherefrom.cli.main import main
from wherefrom.indexer.executors.base import Outcome, Task
from wherefrom.indexer.workshop import Workshop

if __name__ == "__main__":
    torch.set_num_threads(1)
    killed_at = sys.argv[1]
    perform = Workshop.perform

    def perform_or_die(self: Workshop, task: Task) -> Outcome:
        if os.environ["RANK"] == "1" and killed_at in str(task):
            os.kill(os.getpid(), signal.SIGKILL)
        return perform(self, task)

    with pytest.MonkeyPatch.context() as patch:
        many_shards(patch)
        patch.setattr(Workshop, "perform", perform_or_die)
        sys.argv = ["wherefrom", *sys.argv[2:]]
        main()
