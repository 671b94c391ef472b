"""`dist-teracon serve`."""

from __future__ import annotations

import argparse

from dist_teracon.cli.arguments import AddCommand, as_count, as_path
from dist_teracon.console import Console
from dist_teracon.errors import ConfigError

# What each command is for, as `dist-teracon --help` lists them.
COMMANDS = {"serve": "answer requests for vectors and predictions by HTTP"}


def add_commands(add: AddCommand) -> None:
    """Add the command to the command line."""
    serve = add("serve", _serve)
    serve.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN[@STAGE]", help="folder or URI of a run; with names several, or several stages, side by side"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    serve.add_argument("--port", type=as_count, default=8000, metavar="N", help="port to listen on (8000)")
    serve.add_argument("--token-file", type=as_path, metavar="FILE", help="requests have to bring the token in this file")
    serve.add_argument("--users", type=as_count, default=10_000, metavar="N", help="users remembered a model, for /events (10000)")
    serve.add_argument("--snapshot", type=as_path, metavar="DIR", help="keep the remembered users there, over restarts")
    serve.add_argument("--snapshot-every", type=as_count, default=300, metavar="SECONDS", help="time between two snapshots (300)")
    serve.add_argument("--max-body", type=as_count, default=1 << 20, metavar="BYTES", help="largest request (1 MiB)")
    serve.add_argument("--max-waiting", type=as_count, default=1024, metavar="N", help="requests that may wait; more are refused (1024)")
    serve.add_argument("--device", default="cpu", help="where it computes (cpu)")


def _serve(options: argparse.Namespace) -> None:
    from dist_teracon import io
    from dist_teracon.inference.serving.requests import Limits
    from dist_teracon.inference.serving.served import Source
    from dist_teracon.launch.serve import ServeOptions, serve

    if options.port > 65535:
        raise ConfigError(f"--port: expected 1 to 65535, got {options.port}")
    parsed = [Source.parse(text) for text in options.runs]
    # the process that serves has a working folder of its own
    sources = [Source(one.name, str(io.local_path(one.run).absolute()) if io.is_local(one.run) else one.run, one.stage) for one in parsed]
    chosen = ServeOptions(
        host=options.host, port=options.port, token_file=None if options.token_file is None else options.token_file.absolute(),
        users=options.users, snapshots=None if options.snapshot is None else options.snapshot.absolute(),
        snapshot_seconds=options.snapshot_every, limits=Limits(body=options.max_body, waiting=options.max_waiting), device=options.device,
    )  # fmt: skip
    serve(sources, chosen, log=Console().log)
