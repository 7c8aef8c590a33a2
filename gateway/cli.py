"""The ``havengate`` command.  Exit code 0: done; 1: it did not work, in one clear line; 2: wrong usage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway import commands
from gateway.errors import StartupError
from gateway.store.errors import StoreError

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.  argparse itself exits with 2 on wrong usage."""
    arguments = _parser().parse_args(argv)
    run: Command = arguments.run
    try:
        return run(arguments)
    except StoreError as error:
        print(f"havengate: The database cannot be used ({error.kind}). {error.message}", file=sys.stderr)
        return StartupError.exit_code
    except StartupError as error:
        print(f"havengate: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="havengate", description="A safety gateway for mental-health conversations, OpenAI-compatible."
    )
    parser.add_argument("--version", action="version", version=f"havengate {version('havengate')}")
    groups = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _serve(groups)
    _store_commands(groups)
    _judging_commands(groups)
    doctor = _command(groups, "doctor", commands.doctor, "check this machine and print the effective settings")
    _with_settings(doctor)
    return parser


def _serve(groups: Any) -> None:
    serve = _command(groups, "serve", commands.serve, "start the gateway")
    _with_settings(serve)
    serve.add_argument("--port", type=int, help="port to listen on (default 8000)")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--backend", metavar="KIND", help="llama_cpp (default), openai_http, scripted or a plug-in's")
    serve.add_argument("--backend-url", metavar="URL", help="base URL of an OpenAI-compatible server")
    serve.add_argument("--backend-model", metavar="NAME", help="the model's name on that server")


def _store_commands(groups: Any) -> None:
    database = groups.add_parser("db", help="the database").add_subparsers(required=True, metavar="COMMAND")
    _with_settings(_command(database, "upgrade", commands.db_upgrade, "bring the database to the current schema"))

    keys = groups.add_parser("keys", help="API keys").add_subparsers(required=True, metavar="COMMAND")
    create = _command(keys, "create", commands.keys_create, "make a key and print it once")
    create.add_argument("--name", required=True, help="what the key is for")
    create.add_argument("--scope", action="append", help="a scope (repeatable; default: chat, moderations, models)")
    create.add_argument("--region", default="unknown", help="ISO 3166 code of the people it serves (default unknown)")
    _with_settings(create)

    audit = groups.add_parser("audit", help="the audit trail").add_subparsers(required=True, metavar="COMMAND")
    verify = _command(audit, "verify", commands.audit_verify, "check that no row was changed, removed or put in")
    verify.add_argument("--head", metavar="SEQ:HASH", help="a head kept elsewhere: finds a trail that was cut short")
    _with_settings(verify)


def _judging_commands(groups: Any) -> None:
    policy = groups.add_parser("policy", help="policy files").add_subparsers(required=True, metavar="COMMAND")
    check = _command(policy, "check", commands.policy_check, "load policy files and run their example tables")
    check.add_argument("paths", nargs="*", type=Path, help="policy files (default: the bundled ones)")

    for name, run, about in (
        ("detect", commands.detect, "judge JSON Lines of messages, one row out per row in"),
        ("evaluate", commands.evaluate, "measure the detectors on labelled JSON Lines, and write a report"),
    ):
        parser = _command(groups, name, run, about)
        parser.add_argument("--input", required=True, type=Path, help="JSON Lines")
        parser.add_argument("--output", required=True, type=Path, help="file to write")
        _with_settings(parser)


def _command(groups: Any, name: str, run: Command, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = groups.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    return parser


def _with_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    parser.add_argument("--profile", choices=("embedded", "production"), help="which parts to run with")


if __name__ == "__main__":
    sys.exit(main())
