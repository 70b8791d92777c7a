"""Opens and asks hostile indexes, and tells what of the machine was touched on the way.

Run as a program: a model's folder, then indexes, the first of them harmless. Prints one JSON
object.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

FORBIDDEN = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.system",
    "pickle.find_class",
    "urllib.Request",
    "os.remove",
    "os.rename",
)
HOMES = (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), "/proc", "/sys", "/usr", "/dev")


def main(allowed: list[str]) -> None:
    import wherefrom as wf
    from wherefrom.errors import WherefromError

    # Libraries, which look around as they are imported, are to be there already.
    wf.open(allowed[1]).query(prompt="gold", completion=" ships")
    package = str(Path(wf.__file__).parent)
    roots = tuple(os.path.realpath(root) for root in (*HOMES, package, *allowed))
    odd: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            odd.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            flags = arguments[2]
            written = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            inside = path.startswith(tuple(f"{root}/" for root in roots)) or path == __file__
            if not inside or (written and not path.startswith("/dev/") and "pycache" not in path):
                odd.append(f"open {path}")

    sys.addaudithook(watch)
    answered = []
    for path in allowed[1:]:
        try:
            with wf.open(path) as index:
                index.query(prompt="gold", completion=" ships", k=2, where={"year": ("<", 1900)})
            answered.append(path)
        except WherefromError:
            continue
    print(json.dumps({"odd": odd, "answered": answered}))


if __name__ == "__main__":
    main(sys.argv[1:])
