"""``python -m wherefrom``: the same as the ``wherefrom`` command."""

from __future__ import annotations

if __name__ == "__main__":
    from wherefrom.cli.main import main

    main()
