"""Objects under a URL: read, written once, replaced only by who knows what they replace.

By obstore, which is the library inside Lance, so that both reach the same stores in the same way.
Credentials are those that the AWS tools would use, found by boto3 (environment, profiles, roles).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from wherefrom.errors import IndexBusyError, IntegrityError, MissingExtraError, StorageError
from wherefrom.store.durable import storage_errors

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config, S3Credential

__all__ = ["RemoteFolder", "Stored", "remote_errors"]

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_WHOLE_REQUEST = timedelta(hours=1)  # Which may be of a large file.
_RETRIES = 3
_RETRY_SECONDS = 60
_PART = 8 << 20
_MOST_PARTS = 9000
_CREDENTIALS_LAST = timedelta(minutes=15)

_NO_CREDENTIALS = (
    "give some as for the AWS tools (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE), "
    "or AWS_SKIP_SIGNATURE=true for a public bucket"
)
_STATUS = r"status(?: code)?: "
_CAUSES = (
    # What a message holds, in the order of looking; what it means; what to do.
    (r"<code>nosuchbucket", "there is no such bucket", "check its name, or create it"),
    (
        r"credentialsnotloaded|nocredentials|partialcredentials",
        "no credentials were found",
        _NO_CREDENTIALS,
    ),
    (
        r"<code>(invalidaccesskeyid|signaturedoesnotmatch|expiredtoken|invalidtoken)",
        "the credentials are wrong or have expired",
        "renew them",
    ),
    (
        r"received redirect|<code>(permanentredirect|authorizationheadermalformed)",
        "the bucket is in another region",
        "set AWS_REGION to it",
    ),
    (
        rf"{_STATUS}40[13]|permissiondenied|unauthenticated",
        "access was denied",
        "check the credentials and what they are allowed in the bucket",
    ),
    (
        rf"{_STATUS}501|notsupportederror",
        "the store has no conditional writes",
        "publish to one that has them",
    ),
    (
        r"error sending request|kind: (connect|timeout)|timed out|dns error",
        "it cannot be reached",
        "check the network, and AWS_ENDPOINT_URL if the store is not Amazon's",
    ),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it was read.

    Attributes:
        data: Its bytes.
        version: What tells it from those that come after it.
    """

    data: bytes
    version: UpdateVersion


@contextmanager
def remote_errors(place: object, absent: Callable[[], Exception] | None = None) -> Iterator[None]:
    """Turn what a store or the way to it refuses inside the block into one-line errors.

    Args:
        place: What the block reads or writes; named in the error.
        absent: Makes the error for an object that is not there.

    Raises:
        StorageError: The store cannot be reached or refuses.
        IntegrityError: An object is missing.
    """
    try:
        yield
    except (IndexBusyError, IntegrityError, MissingExtraError, StorageError, TypeError):
        raise
    except Exception as error:
        text = f"{type(error).__name__} {error}".lower()
        for mark, cause, remedy in _CAUSES:
            if re.search(mark, text):
                raise StorageError(f"cannot use {place}: {cause}; {remedy}") from error
        if isinstance(error, FileNotFoundError) or "not found" in text:
            made = absent() if absent else None
            raise made or IntegrityError(
                f"{place} is missing; if the index was pruned after it was opened, open it again, "
                "else publish it again"
            ) from error
        if isinstance(error, OSError):
            raise
        first = str(error).strip().splitlines()[0]
        raise StorageError(f"cannot use {place}: {first}; try again") from error


class RemoteFolder:
    """The objects under a URL.

    Args:
        url: ``s3://bucket/name``, or the like with ``gs`` or ``az``.

    Raises:
        MissingExtraError: obstore or boto3 is not installed.
        StorageError: There are no credentials, or the configuration is refused.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = _open_store(url)

    def read(self, name: str) -> Stored | None:
        """An object, or ``None`` if there is none of that name.

        Raises:
            StorageError: The store cannot be reached or refuses.
        """
        import obstore

        try:
            with remote_errors(self._place(name), absent=FileNotFoundError):
                found = obstore.get(self._store, name)
                # Stores tell versions apart by one of these or both; obstore takes no None.
                tags = {name: found.meta[name] for name in ("e_tag", "version")}
                known = {name: tag for name, tag in tags.items() if tag is not None}
                return Stored(bytes(found.bytes()), cast("UpdateVersion", known))
        except FileNotFoundError:
            return None

    def download(self, name: str, target: IO[bytes], seen: Callable[[bytes], object]) -> None:
        """Write an object into a file, showing each piece to ``seen`` as well.

        Raises:
            IntegrityError: It is missing.
            StorageError: The store cannot be reached or refuses, or the disk does.
        """
        import obstore

        with remote_errors(self._place(name)), storage_errors(target.name):
            for piece in obstore.get(self._store, name).stream(min_chunk_size=_PART):
                data = bytes(piece)
                seen(data)
                target.write(data)

    def upload(self, name: str, file: Path) -> None:
        """Write a file, whole or not at all; what there was of that name is replaced.

        Raises:
            StorageError: The store cannot be reached or refuses, or the disk does.
        """
        import obstore

        with remote_errors(self._place(name)), storage_errors(file), file.open("rb") as data:
            part = max(_PART, os.fstat(data.fileno()).st_size // _MOST_PARTS)
            obstore.put(self._store, name, data, chunk_size=part)

    def write(self, name: str, data: bytes, replaces: Stored | None) -> None:
        """Write an object if nobody else has since it was looked for.

        Args:
            name: Of the object.
            data: Its bytes.
            replaces: What it was when it was read; ``None`` if there was none.

        Raises:
            IndexBusyError: It was written meanwhile.
            StorageError: The store cannot be reached or refuses, or cannot make writes conditional.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with remote_errors(self._place(name)):
                try:
                    mode: PutMode = "create" if replaces is None else replaces.version
                    obstore.put(self._store, name, data, mode=mode, use_multipart=False)
                except (AlreadyExistsError, PreconditionError) as error:
                    raise IndexBusyError(
                        f"{self._place(name)} was written by another at the same time; look at "
                        "what it is now and try again"
                    ) from error
        except IntegrityError as error:
            # What was to be replaced is gone.
            raise IndexBusyError(
                f"{self._place(name)} was removed by another; try again"
            ) from error

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of all objects in a folder and those in it, by their names.

        Raises:
            StorageError: The store cannot be reached or refuses.
        """
        import obstore

        with remote_errors(self._place(folder)):
            listed = obstore.list(self._store, folder, chunk_size=1000)
            return {meta["path"]: meta["size"] for batch in listed for meta in batch}

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects; those that are gone already are passed over.

        Raises:
            StorageError: The store cannot be reached or refuses.
        """
        import obstore

        for name in names:
            with remote_errors(self._place(name)):
                try:
                    obstore.delete(self._store, name)
                except FileNotFoundError:
                    continue

    @cached_property
    def lance_options(self) -> dict[str, str]:
        """How Lance is to reach the same store."""
        common = {
            "connect_timeout": f"{_CONNECT_SECONDS} seconds",
            "client_max_retries": str(_RETRIES),
            "client_retry_timeout": str(_RETRY_SECONDS),
        }
        if not self.url.startswith("s3://"):
            return common
        settings = {f"aws_{name}": value for name, value in _s3_settings().items()}
        plain = settings.get("aws_endpoint", "").startswith("http://")
        return {**common, **settings, **({"allow_http": "true"} if plain else {})}

    def _place(self, name: str) -> str:
        return f"{self.url}/{name}"


def _open_store(url: str) -> ObjectStore:
    try:
        from obstore.store import S3Store, from_url
    except ModuleNotFoundError as error:
        raise _missing(url) from error
    retries: RetryConfig = {
        "max_retries": _RETRIES,
        "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
    }
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=_READ_SECONDS),
        "timeout": _WHOLE_REQUEST,
    }
    with remote_errors(url):
        if not url.startswith("s3://"):
            return from_url(url, client_options=client, retry_config=retries)
        settings = _s3_settings()
        client["allow_http"] = settings.get("endpoint", "").startswith("http://")
        signed = "skip_signature" not in settings
        return S3Store.from_url(
            url,
            config=cast("S3Config", settings),
            client_options=client,
            retry_config=retries,
            credential_provider=_AwsCredentials(url) if signed else None,
        )


def _s3_settings() -> dict[str, str]:
    """What the environment says of the store, under obstore's names."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    settings = {"region": region or _profile_region() or "us-east-1"}
    if endpoint:
        settings["endpoint"] = endpoint
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        settings["skip_signature"] = "true"
    return settings


def _profile_region() -> str | None:
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise _missing("s3://") from error
    region: str | None = boto3.session.Session().region_name
    return region


class _AwsCredentials:
    """Credentials as boto3 finds and renews them; obstore's own class of the kind needs 3.11."""

    def __init__(self, url: str) -> None:
        try:
            import boto3
        except ModuleNotFoundError as error:
            raise _missing(url) from error
        self._credentials = boto3.session.Session().get_credentials()
        if self._credentials is None:
            raise StorageError(f"cannot use {url}: no credentials were found; {_NO_CREDENTIALS}")

    def __call__(self) -> S3Credential:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(timezone.utc) + _CREDENTIALS_LAST,
        }


def _missing(url: str) -> MissingExtraError:
    return MissingExtraError(
        f"{url} is on object storage, which needs obstore and boto3; pip install 'wherefrom[s3]'"
    )
