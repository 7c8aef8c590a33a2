"""The `havengate-train` command.  Exit codes: 0 done, 1 could not, 2 wrong usage.  torch is imported by `fit` and `export` only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectors.api import DetectorError

DEFAULT_NAME = "minilm-l6-haven"


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; a failure is one line on standard error."""
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return _run(arguments)
    except ImportError as error:
        return _fail(f"{error.name or error} is missing here: install the 'train' extra")
    except (OSError, ValueError, RuntimeError, DetectorError) as error:
        return _fail(f"{type(error).__name__}: {error}")


def _fail(reason: str) -> int:
    print(f"havengate-train: {' '.join(reason.split())}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="havengate-train", description="Builds what Havengate serves.")
    rooms = parser.add_subparsers(dest="room", required=True)
    detectors = rooms.add_parser("detectors", help="fit, export and measure the trained detector")
    steps = detectors.add_subparsers(dest="step", required=True)
    default = Path(__file__).resolve().parents[1] / "detectors" / "models" / DEFAULT_NAME

    fit = steps.add_parser("fit", help="fit encoder and heads; writes model.pt and fit.json")
    fit.add_argument("--data", type=Path, required=True, help="folder that holds own/, crisis/ and bias/")
    fit.add_argument("--run", type=Path, required=True, help="folder for the fit")
    fit.add_argument("--epochs", type=int, default=3)
    fit.add_argument("--seed", type=int, default=20261125)
    fit.add_argument("--threads", type=int, default=1)
    fit.add_argument("--limit", type=int, help="rows per source (a smoke run)")

    export = steps.add_parser("export", help="ONNX, int8, calibration and thresholds; writes the model folder")
    export.add_argument("--data", type=Path, required=True)
    export.add_argument("--run", type=Path, required=True)
    export.add_argument("--model", type=Path, default=default)

    measure = steps.add_parser("evaluate", help="measure on the test split; writes a Markdown report")
    measure.add_argument("--data", type=Path, required=True)
    measure.add_argument("--model", type=Path, default=default)
    measure.add_argument("--output", type=Path, help="report file (default: standard output)")
    measure.add_argument("--card", action="store_true", help="also write the model folder's README.md")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.step == "fit":
        from trainer.detectors.fit import FitOptions, fit

        options = FitOptions(
            seed=arguments.seed, epochs=arguments.epochs, threads=arguments.threads, limit=arguments.limit
        )
        fit(arguments.data, arguments.run, options)
    elif arguments.step == "export":
        from trainer.detectors.pipeline import finish

        finish(arguments.data, arguments.run, arguments.model)
    else:
        from trainer.detectors.pipeline import measure

        text = measure(arguments.data, arguments.model, arguments.card)
        if arguments.output:
            arguments.output.write_text(text, "utf-8")
        else:
            print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
