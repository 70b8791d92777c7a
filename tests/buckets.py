"""Buckets of a store that listens on this machine, for indexes on object storage."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.error import URLError

import pytest

from wherefrom.store.remote import RemoteFolder

SECONDS_TO_START = 60
_NAMES = count()


@dataclass(frozen=True)
class Store:
    """A store that speaks S3.

    Attributes:
        endpoint: Its URL.
    """

    endpoint: str

    def bucket(self, name: str | None = None) -> str:
        """A new bucket's URL."""
        name = name or f"bucket-{next(_NAMES)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        return f"s3://{name}"


@contextmanager
def store() -> Iterator[Store]:
    """A store in a process of its own, so that its warnings and threads are not the tests'."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", "from moto.server import main; main()"]
    process = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _await(endpoint, process)
        yield Store(endpoint)
    finally:
        process.kill()
        process.wait()


def _await(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert process.poll() is None, "the store did not start"
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(endpoint)


def reach(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """Have wherefrom use a store, with credentials of no worth and an empty cache in ``home``."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(home / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "aws-credentials"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def objects(url: str) -> dict[str, int]:
    """Sizes of all objects of a published index, by their names."""
    return RemoteFolder(url).sizes("")


def damage(url: str, name: str) -> None:
    """Flip one bit of an object."""
    folder = RemoteFolder(url)
    stored = folder.read(name)
    assert stored is not None
    data = bytearray(stored.data)
    data[len(data) // 2] ^= 1
    folder.write(name, bytes(data), stored)
