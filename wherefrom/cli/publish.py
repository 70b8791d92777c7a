"""``wherefrom publish`` and ``wherefrom fetch``: an index to object storage, and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

__all__ = ["FETCH_SCHEMA", "PUBLISH_SCHEMA", "fetch", "publish"]

PUBLISH_SCHEMA = "wherefrom-publish/1"
FETCH_SCHEMA = "wherefrom-fetch/1"


@click.command(short_help="Put an index on object storage, where others ask it.")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("url")
@click.option(
    "--replace",
    is_flag=True,
    help="Publish it even if what is published there is another index, or a later state or another "
    "branch of this one.",
)
@click.option(
    "--prune",
    is_flag=True,
    help="Then remove what earlier publications left. Who still holds one of these has to open the "
    "index again. Give it when nobody else is publishing there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a summary.")
def publish(index: Path, url: str, replace: bool, prune: bool, as_json: bool) -> None:
    """Publish INDEX at URL, as s3://bucket/name (gs:// and az:// likewise).

    Every other command takes the URL for an index, to ask it. Readers see the former state or this
    one, whole; only what the former one has not is uploaded. Interrupted, the same command goes on.

    Credentials and region are those of the AWS tools (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_REGION,
    ...); AWS_ENDPOINT_URL names a store that is not Amazon's. Needs pip install 'wherefrom[s3]'.
    """
    from wherefrom.cli.progress import progress_bars
    from wherefrom.cli.render import emit_json, print_facts, terminal
    from wherefrom.maintenance.publish import publish as put

    with progress_bars() as progress:
        done = put(index, url, replace=replace, prune=prune, progress=progress)
    if as_json:
        emit_json({"schema": PUBLISH_SCHEMA, **asdict(done)})
        return
    facts = [
        ("published", done.url if done.changed else f"{done.url}, as it was already"),
        ("generation", str(done.generation)),
        ("manifest SHA-256", done.manifest_sha256),
        ("uploaded", f"{done.uploaded:,} objects, {done.uploaded_bytes:,} bytes"),
        ("there already", f"{done.kept:,} objects"),
    ]
    if prune:
        facts.append(("removed", f"{done.removed:,} objects"))
    print_facts(facts, terminal())


@click.command(short_help="Make a directory of a published index, to change it.")
@click.argument("url")
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a line.")
def fetch(url: str, index: Path, as_json: bool) -> None:
    """Make the directory INDEX of the index published at URL.

    To ask an index that is not needed: every command takes the URL. It is to change one: append to
    the directory or delete from it, and publish it again.
    """
    from wherefrom.cli.progress import progress_bars
    from wherefrom.cli.render import emit_json
    from wherefrom.maintenance.fetch import fetch as get
    from wherefrom.query.printable import printable

    with progress_bars() as progress:
        made = get(url, index, progress=progress)
    if as_json:
        emit_json({"schema": FETCH_SCHEMA, "url": url, "path": str(made.resolve())})
        return
    click.echo(f"{printable(str(made))} is the index published at {printable(url)}.")
