"""Places of indexes, objects under a URL, and the cache of what was fetched."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import buckets
from buckets import Store
from wherefrom.errors import (
    IndexBusyError,
    IntegrityError,
    MissingExtraError,
    NotAnIndexError,
    StorageError,
)
from wherefrom.store import DocumentTable, Location, Manifest
from wherefrom.store.cache import cache_folder
from wherefrom.store.directory import ENCODER_FILE
from wherefrom.store.lance import version_name
from wherefrom.store.location import lineage
from wherefrom.store.remote import RemoteFolder


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with buckets.store() as running:
        yield running


@pytest.fixture
def url(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Of a folder in a bucket of its own, that nothing lies in."""
    buckets.reach(monkeypatch, store.endpoint, tmp_path)
    return f"{store.bucket()}/some/index"


@pytest.fixture
def built(build_index: Callable[..., Any]) -> Any:
    """An index with a file in its encoder's place."""
    index = build_index()
    data = b"an encoder"
    (index.path / ENCODER_FILE).write_bytes(data)
    encoder = index.manifest.encoder.model_copy(update={"file_sha256": sha256(data).hexdigest()})
    manifest = index.manifest.model_copy(update={"encoder": encoder})
    manifest.write(index.path)
    return replace(index, manifest=manifest)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("s3://bucket/my.index", "s3://bucket/my.index"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        (Path("s3://bucket/my.index"), "s3://bucket/my.index"),
        ("gs://bucket/my.index", "gs://bucket/my.index"),
        ("az://container/my.index", "az://container/my.index"),
    ],
)
def test_a_url_is_one_also_as_a_path(place: str | Path, text: str) -> None:
    location = Location(place)
    assert location.remote
    assert str(location) == os.fspath(location) == location.full == text
    assert location == Location(text)
    assert location.name == text.rpartition("/")[2]
    with pytest.raises(StorageError, match="wherefrom fetch"):
        _ = location.directory


def test_a_path_stays_what_it_is(built: Any) -> None:
    location = Location(built.path)
    assert not location.remote
    assert location.directory == location.folder(built.manifest) == built.path
    assert location.database(built.manifest).options is None
    assert location.name == built.path.name
    with pytest.raises(StorageError, match="no URL"):
        _ = location.objects


@pytest.mark.parametrize(
    "place",
    [
        "https://bucket/my.index",
        Path("http://bucket/my.index"),
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket//x",
        "s3://bucket/../other",
        "s3://bucket/a?b",
        "s3://bucket/a\nb",
        "file:///tmp/x",
    ],
)
def test_other_urls_are_refused(place: str | Path) -> None:
    with pytest.raises(NotAnIndexError, match=r"(?s)is no place for an index.*give a "):
        Location(place)


def test_a_directory_needs_none_of_the_libraries() -> None:
    code = (
        "import sys, wherefrom.store as s; s.Location('x').directory; "
        "print(sorted({'obstore', 'boto3', 'lancedb'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.strip() == "[]", finished.stderr


def test_objects_are_written_read_listed_and_removed(url: str, tmp_path: Path) -> None:
    folder = RemoteFolder(url)
    assert folder.read("a/one") is None
    assert folder.sizes("") == {}
    file = tmp_path / "file"
    file.write_bytes(os.urandom(20 << 20))
    folder.upload("a/large", file)
    folder.write("b/small", b"12", None)
    assert folder.sizes("") == {"a/large": 20 << 20, "b/small": 2}
    assert folder.sizes("a") == {"a/large": 20 << 20}
    target, seen = tmp_path / "again", sha256()
    with target.open("wb") as opened:
        folder.download("a/large", opened, seen.update)
    assert target.read_bytes() == file.read_bytes()
    assert seen.hexdigest() == sha256(file.read_bytes()).hexdigest()
    folder.remove(["a/large", "nothing"])
    assert folder.sizes("") == {"b/small": 2}


def test_only_who_knows_an_object_replaces_it(url: str) -> None:
    folder = RemoteFolder(url)
    folder.write("manifest", b"one", None)
    with pytest.raises(IndexBusyError, match="written by another"):
        folder.write("manifest", b"two", None)
    first = folder.read("manifest")
    folder.write("manifest", b"two", first)
    with pytest.raises(IndexBusyError, match="written by another"):
        folder.write("manifest", b"three", first)
    second = folder.read("manifest")
    assert second is not None
    assert second.data == b"two"
    folder.remove(["manifest"])
    with pytest.raises(IndexBusyError):
        folder.write("manifest", b"three", second)


def test_of_many_who_replace_an_object_one_does(url: str) -> None:
    folder = RemoteFolder(url)
    folder.write("manifest", b"0", None)
    first = folder.read("manifest")

    def replace(number: int) -> int | None:
        try:
            folder.write("manifest", b"%d" % number, first)
        except IndexBusyError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        written = [number for number in pool.map(replace, range(1, 17)) if number is not None]
    last = folder.read("manifest")
    assert last is not None
    assert written == [int(last.data)]


def reading(url: str) -> None:
    RemoteFolder(url).read("manifest.json")


def listing(url: str) -> None:
    RemoteFolder(url).sizes("objects")


def writing(url: str) -> None:
    RemoteFolder(url).write("manifest.json", b"{}", None)


def connecting(url: str) -> None:
    from wherefrom.store.lance import open_table
    from wherefrom.store.location import Database

    open_table(Database(f"{url}/tables/x", "tables/x", RemoteFolder(url)), "documents", 1)


@pytest.mark.parametrize("use", [reading, listing, writing, connecting])
def test_a_bucket_that_is_not_there(url: str, use: Callable[[str], None]) -> None:
    with pytest.raises(StorageError, match=r"no such bucket; check its name, or create it\Z"):
        use("s3://nowhere-at-all/my.index")


@contextmanager
def answering(status: int, code: str, headers: dict[str, str]) -> Iterator[str]:
    """A store that answers everything with the same refusal."""

    class Handler(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = refuse  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


REFUSALS = {
    "denied": (403, "AccessDenied", {}, "access was denied; check the credentials"),
    "key": (403, "InvalidAccessKeyId", {}, "credentials are wrong or have expired; renew them"),
    "expired": (400, "ExpiredToken", {}, "credentials are wrong or have expired; renew them"),
    "region": (301, "PermanentRedirect", {}, "in another region; set AWS_REGION"),
    "conditional": (501, "NotImplemented", {}, "no conditional writes; publish to one"),
    "odd": (418, "Teapot", {}, "try again"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_of_a_store_are_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, code, headers, told = REFUSALS[name]
    with answering(status, code, headers) as endpoint:
        buckets.reach(monkeypatch, endpoint, tmp_path)
        # An index's own name must not be taken for what its store says.
        with pytest.raises(StorageError, match=told) as raised:
            writing("s3://bucket/status code: 403 nosuchbucket")
        assert len(str(raised.value).splitlines()) == 1
        assert "s3://bucket/" in str(raised.value)


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    buckets.reach(monkeypatch, "http://127.0.0.1:1", tmp_path)
    with pytest.raises(StorageError, match=r"cannot be reached; check the network") as raised:
        reading("s3://bucket/my.index")
    assert len(str(raised.value).splitlines()) == 1


def test_no_credentials(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"no credentials were found; .*AWS_PROFILE") as raised:
        reading(url)
    assert len(str(raised.value).splitlines()) == 1


def test_credentials_and_region_of_a_profile(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    keys = "[mine]\naws_access_key_id = a\naws_secret_access_key = b\n"
    (tmp_path / "aws-credentials").write_text(keys)
    (tmp_path / "aws-config").write_text("[profile mine]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    folder = RemoteFolder(url)
    assert folder.read("nothing") is None
    assert folder.lance_options["aws_region"] == "eu-central-1"
    monkeypatch.setenv("AWS_PROFILE", "another")
    with pytest.raises(StorageError, match="another"):
        RemoteFolder(url)


def test_a_public_bucket_needs_no_credentials(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    folder = RemoteFolder(url)
    assert folder.read("nothing") is None
    assert folder.lance_options["aws_skip_signature"] == "true"


@pytest.mark.parametrize("library", ["obstore.store", "boto3"])
def test_libraries_that_are_not_installed(
    url: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[s3\]'"):
        RemoteFolder(url)


def publish_by_hand(built: Any, url: str) -> Location:
    """What a publication consists of, written down once more."""
    folder, manifest = RemoteFolder(url), built.manifest
    for path, digest in manifest.files().items():
        folder.upload(f"objects/{digest}", built.path / path)
    table = f"{manifest.store.table}.lance"
    for file in sorted((built.path / table).rglob("*")):
        if file.is_file() and file.name != "latest_version_hint.json":
            name = file.relative_to(built.path).as_posix()
            folder.upload(f"tables/{lineage(manifest)}/{name}", file)
    folder.upload("manifest.json", built.path / "manifest.json")
    return Location(url)


def test_documents_are_read_where_they_are(built: Any, url: str) -> None:
    location = publish_by_hand(built, url)
    manifest = Manifest.read(location)
    assert manifest == Manifest.read(built.path)
    table = DocumentTable.open(location, manifest)
    local = built.open()
    assert len(table) == len(local)
    ordinals = [5, 0, 3]
    assert table.rows(ordinals).batch.equals(local.rows(ordinals).batch)
    everything = zip(table.batches(7), local.batches(7), strict=True)
    assert all(one.batch.equals(other.batch) for one, other in everything)
    assert not (cache_folder() / "snapshots" / f"{manifest.store.table}.lance").exists()
    with pytest.raises(StorageError, match="neither changed nor"):
        DocumentTable.open(location, manifest, write=True)


def test_documents_that_are_gone(built: Any, url: str) -> None:
    location = publish_by_hand(built, url)
    manifest = Manifest.read(location)
    table = DocumentTable.open(location, manifest)
    remote = RemoteFolder(url)
    remote.remove([name for name in remote.sizes("tables") if "/data/" in name])
    with pytest.raises(IntegrityError, match=r"s3://.* is missing; .*open it again"):
        table.rows([1])


def test_a_table_that_names_data_elsewhere_is_refused(built: Any, url: str) -> None:
    location = publish_by_hand(built, url)
    manifest = Manifest.read(location)
    name = (
        f"tables/{lineage(manifest)}/{manifest.store.table}.lance/"
        f"{version_name(manifest.store.table_version)}"
    )
    remote = RemoteFolder(url)
    stored = remote.read(name)
    assert stored is not None
    start = int.from_bytes(stored.data[-16:-8], "little")
    length = int.from_bytes(stored.data[start : start + 4], "little")
    base_paths = bytes([18 << 3 & 0x7F | 2 | 0x80, 18 >> 4, 0])  # field 18, of no bytes
    message = stored.data[start + 4 : start + 4 + length] + base_paths
    framed = len(message).to_bytes(4, "little") + message
    remote.write(name, stored.data[:start] + framed + stored.data[-16:], stored)
    with pytest.raises(IntegrityError, match="names data outside the index"):
        DocumentTable.open(location, manifest)


@pytest.mark.parametrize("name", ["1.manifest", "99999999999999999999.manifest.tmp", "x/1"])
def test_versions_under_other_names_are_refused(built: Any, url: str, name: str) -> None:
    location = publish_by_hand(built, url)
    manifest = built.manifest
    folder = f"tables/{lineage(manifest)}/{manifest.store.table}.lance/_versions"
    RemoteFolder(url).write(f"{folder}/{name}", b"", None)
    with pytest.raises(IntegrityError, match="is no version of a table"):
        DocumentTable.open(location, manifest)


def test_files_are_fetched_once(built: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_by_hand(built, url)
    fetched: list[str] = []
    download = RemoteFolder.download

    def counted(self: RemoteFolder, name: str, target: io.BufferedWriter, seen: object) -> None:
        fetched.append(name)
        download(self, name, target, seen)

    monkeypatch.setattr(RemoteFolder, "download", counted)
    files = built.manifest.files()
    folder = Location(url).folder(built.manifest, files)
    assert sorted(fetched) == sorted({f"objects/{digest}" for digest in files.values()})
    for path in files:
        assert (folder / path).read_bytes() == (built.path / path).read_bytes()
    assert Location(url).folder(built.manifest, files) == folder
    assert len(fetched) == len(set(files.values()))


def test_a_damaged_cache_mends_itself(built: Any, url: str) -> None:
    publish_by_hand(built, url)
    files = built.manifest.files()
    folder = Location(url).folder(built.manifest, files)
    path = folder / next(iter(files))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")  # The same file as that of the objects: a hard link.
    assert (Location(url).folder(built.manifest, files) / next(iter(files))).read_bytes() == whole
    (cache_folder() / "objects" / files[next(iter(files))]).unlink()
    path.unlink()
    assert (Location(url).folder(built.manifest, files) / next(iter(files))).read_bytes() == whole


def test_damaged_and_missing_objects_are_named(built: Any, url: str) -> None:
    publish_by_hand(built, url)
    files = built.manifest.files()
    path, digest = next(iter(files.items()))
    buckets.damage(url, f"objects/{digest}")
    with pytest.raises(IntegrityError, match=rf"objects/{digest} \({path}\) differs"):
        Location(url).folder(built.manifest, files)
    RemoteFolder(url).remove([f"objects/{digest}"])
    with pytest.raises(IntegrityError, match=rf"objects/{digest} is missing"):
        Location(url).folder(built.manifest, files)
    kept = cache_folder() / "objects"
    assert [name for name in os.listdir(kept) if name == digest or name.startswith(".")] == []


@pytest.mark.parametrize("name", ["../outside", "/outside", "scan/../../outside", "", "a\\b"])
def test_a_manifest_cannot_name_files_outside(built: Any, url: str, name: str) -> None:
    RemoteFolder(url).write(f"objects/{sha256(b'x').hexdigest()}", b"x", None)
    with pytest.raises(IntegrityError, match="no file of an index"):
        Location(url).folder(built.manifest, {name: sha256(b"x").hexdigest()})
    assert not list(cache_folder().parent.rglob("outside"))


def test_a_manifest_cannot_name_digests_that_are_none(built: Any, url: str) -> None:
    with pytest.raises(IntegrityError, match="which is none"):
        Location(url).folder(built.manifest, {"a": "../../outside"})


def test_many_fetch_at_once(built: Any, url: str) -> None:
    publish_by_hand(built, url)
    files = built.manifest.files()
    for _ in range(10):
        shutil.rmtree(cache_folder(), ignore_errors=True)
        with ThreadPoolExecutor(8) as pool:
            fetched = pool.map(lambda _: Location(url).folder(built.manifest, files), range(8))
        (folder,) = set(fetched)
        for path in files:
            assert (folder / path).read_bytes() == (built.path / path).read_bytes()
        assert (folder / "manifest.json").read_bytes() == built.manifest.to_bytes()
        assert not list(cache_folder().rglob(".*"))


def test_nothing_published(url: str) -> None:
    with pytest.raises(NotAnIndexError, match="publish one there with wherefrom publish"):
        Manifest.read(url)


def test_a_changed_manifest_is_refused(built: Any, url: str) -> None:
    location = publish_by_hand(built, url)
    buckets.damage(url, "manifest.json")
    with pytest.raises((IntegrityError, NotAnIndexError), match=rf"{url}/manifest.json"):
        Manifest.read(location)
