"""``wherefrom serve``: answer people and programs, over HTTP or MCP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import click
from click.core import ParameterSource

from wherefrom.records import SCORE_CONTRACT

if TYPE_CHECKING:
    import socket

    from wherefrom.serve.security import Access
    from wherefrom.serve.service import Service

__all__ = ["serve"]


@click.command(short_help="Answer people and programs, over HTTP or MCP.", epilog=SCORE_CONTRACT)
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen. Any other address than this machine's own loopback demands a token.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    metavar="NUMBER",
    help="0 takes a free one and says which.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Demand the token that this file holds, as `Authorization: Bearer TOKEN`; by default that "
    "of the environment variable WHEREFROM_TOKEN, if it is set.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="A host name that this server goes by, beside localhost and addresses. May be repeated.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    metavar="N",
    help="Requests that may wait for the model; more are told to come back later.",
)
@click.option(
    "--max-body",
    type=click.IntRange(min=1024),
    default=1 << 18,
    show_default=True,
    metavar="BYTES",
    help="Largest request.",
)
@click.option(
    "--time-limit",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    metavar="SECONDS",
    help="What a request may take, waiting included.",
)
@click.option(
    "--mcp",
    type=click.Choice(["stdio", "http"]),
    help="Speak the Model Context Protocol: on standard input and output instead of HTTP, or at "
    "/mcp beside the page.",
)
@click.option(
    "--model",
    metavar="DIR",
    help="The model (or adapter) that the index was built with; by default where the index says "
    "it is.",
)
@click.option(
    "--base-model",
    metavar="DIR",
    help="The model that the adapter is for; by default where the index says it is.",
)
@click.option(
    "--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu, cuda, ..."
)
@click.option("--quiet", is_flag=True, help="Write no line for each request to standard error.")
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    index: Path,
    host: str,
    port: int,
    token_file: Path | None,
    names: tuple[str, ...],
    queue: int,
    max_body: int,
    time_limit: int,
    mcp: Literal["stdio", "http"] | None,
    model: str | None,
    base_model: str | None,
    device: str,
    quiet: bool,
) -> None:
    """Answer questions about INDEX: a page for people, HTTP and MCP for programs.

    Reached from this machine only unless --host says otherwise, and never reaches out itself.
    Ctrl-C or SIGTERM ends it, after the answer that is being computed.
    """
    stdio = mcp == "stdio"
    if stdio:
        _refuse_http_options(ctx)
    from wherefrom.serve import require_extra
    from wherefrom.store import Location, Manifest

    # Mistakes show here, before torch takes its seconds to load.
    require_extra("fastapi", "prometheus_client", "uvicorn", *(["mcp"] if mcp else []))
    manifest = Manifest.read(index)
    door = None if stdio else _door(host, port, token_file, names)

    from wherefrom.api import open as open_index
    from wherefrom.serve.service import Limits, Service

    opened = open_index(index, model=model, base_model=base_model, device=device)
    service = Service(opened, queue=queue, limits=Limits(max_body, time_limit))
    if door is None:
        _serve_stdio(service)
        return
    from wherefrom.serve.app import make_app
    from wherefrom.serve.server import serve as serve_http

    def told() -> None:
        click.echo(
            f"Serving {manifest.corpus.documents:,} documents of {Location.of(index)} at "
            f"{door.url} (Ctrl-C ends it)",
            err=True,
        )

    app = make_app(service, door.access, mcp=mcp == "http")
    serve_http(app, service, door.taken, on_start=told, log_requests=not quiet)


class _Door(NamedTuple):
    """Where to listen and whom to let in."""

    taken: socket.socket
    url: str
    access: Access


def _door(host: str, port: int, token_file: Path | None, names: tuple[str, ...]) -> _Door:
    from wherefrom.serve.security import TOKEN_VARIABLE, Access, is_loopback, read_token
    from wherefrom.serve.sockets import bind, url_of

    reached_from_here_only = is_loopback(host)
    token = read_token(token_file, os.environ)
    if token is None and not reached_from_here_only:
        raise click.UsageError(
            f"--host {host} lets other machines in; give --token-file, or set {TOKEN_VARIABLE}"
        )
    taken = bind(host, port)
    return _Door(taken, url_of(taken, host), Access.of(token, names))


def _serve_stdio(service: Service) -> None:
    import anyio

    from wherefrom.serve.mcp_server import serve_stdio

    async def session() -> None:
        try:
            await serve_stdio(service)
        finally:
            await service.close()

    anyio.run(session)


def _refuse_http_options(ctx: click.Context) -> None:
    """Refuse what has no meaning without a port."""
    for parameter in ctx.command.params:
        if parameter.name not in ("host", "port", "token_file", "names", "max_body", "quiet"):
            continue
        if ctx.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT:
            raise click.UsageError(
                f"{parameter.opts[0]} is for HTTP; leave it out, or give --mcp http"
            )
