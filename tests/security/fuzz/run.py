"""Coverage-guided fuzzing of all that is read from outside: ``make fuzz``.

Each target runs in a process of its own for a time. It fails on anything but an error of ours on
one line, or an answer; the input is then left in the current folder as ``crash-...``.

    python tests/security/fuzz/run.py [--seconds N] [TARGET ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = (
    "index",
    "manifest",
    "encoder",
    "filters",
    "clauses",
    "jsonl",
    "csv",
    "parquet",
    "questions",
)
NAMES += ("bundle", "lance", "deleted", "config")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what is read from outside.")
    parser.add_argument("names", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    given = parser.parse_args()
    failed = []
    for name in given.names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(HERE / "target.py"), name, folder]
            command += [f"-max_total_time={given.seconds}", "-rss_limit_mb=4096", "-timeout=20"]
            command += ["-max_len=65536", "-print_final_stats=1"]
            print(f"== {name}", flush=True)
            if subprocess.run(command).returncode:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing found")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
