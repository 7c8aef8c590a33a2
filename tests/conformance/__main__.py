"""Run the kit against a gateway that is up and uses the kit's model.  Exit code 1: a case of the table leaked, or got no answer."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.conformance import kit, report, sdk
from tests.conformance.case import Case, Pair, Phrases
from tests.conformance.upstream import MODEL, Upstream


def _arguments() -> argparse.Namespace:
    usual = Phrases()
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--base-url", required=True, help="the gateway, with /v1: http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none", help="a key that may chat")
    parser.add_argument("--model", required=True, help="the model's name at the gateway")
    parser.add_argument(
        "--upstream-port",
        type=int,
        required=True,
        help="where the kit's model listens on 127.0.0.1; the gateway must use it",
    )
    parser.add_argument("--upstream-model", default=MODEL, help="the name under which it lists itself")
    parser.add_argument(
        "--forbidden", help="one sentence that the gateway stops wherever it stands; else three of the kit's"
    )
    parser.add_argument("--forbidden-heard", default=usual.heard.forbidden, help="a person's sentence that it stops")
    parser.add_argument("--forbidden-told", default=usual.told.forbidden, help="an instruction that it stops")
    parser.add_argument("--forbidden-spoken", default=usual.spoken.forbidden, help="a model's sentence that it stops")
    parser.add_argument("--output", type=Path, required=True, help="the report, as JSON")
    return parser.parse_args()


def phrases(arguments: argparse.Namespace) -> Phrases:
    usual = Phrases()
    one = arguments.forbidden
    return Phrases(
        heard=Pair(one or arguments.forbidden_heard, usual.heard.harmless),
        told=Pair(one or arguments.forbidden_told, usual.told.harmless),
        spoken=Pair(one or arguments.forbidden_spoken, usual.spoken.harmless),
    )


def _is_of_the_table(case: Case) -> bool:
    return case.field == "choices[].delta.content" and case.group != "hard"


async def check(target: kit.Target, upstream: Upstream, said: Phrases) -> dict[str, Any]:
    """Run all cases, the hard ones too, then read each stopped stream once more with OpenAI's SDK."""
    rows = await kit.run(target, upstream, said, kit.CASES + kit.HARD)
    stopped: dict[str, sdk.Stopped] = {}
    for row in rows:
        if row.case.stream and row.verdict.word == "caught" and _is_of_the_table(row.case):
            written = row.case.encode(said.spoken.forbidden)
            upstream.expect(row.case.answer(written))
            stopped[row.case.id] = await sdk.read(target, row.case, written)
    return report.document(rows, stopped)


async def _main(arguments: argparse.Namespace) -> int:
    target = kit.Target(arguments.base_url, arguments.api_key, arguments.model)
    async with Upstream(arguments.upstream_port, arguments.upstream_model) as upstream:
        told = await check(target, upstream, phrases(arguments))
    arguments.output.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{told['n']} cases: {told['counts']}; {told['n_hard']} hard ones: {told['counts_hard']}\n")
    return int(not {"leaked", "error"}.isdisjoint(told["counts"]))


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(_arguments())))
