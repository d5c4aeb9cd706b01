"""`python -m tests.chaos`: run a storm, audit what it left behind, exit 1 when a promise was broken."""

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console

from .report import report
from .storm import CHATS_PER_SECOND, WORKERS, Forecast, Progress, run_storm


def main() -> int:
    """Run the storm that the arguments or the environment ask for."""
    options = _options()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    forecast = Forecast(
        seed=seed, seconds=options.seconds, workers=options.workers, chats_per_second=options.chats_per_second
    )
    console = Console(stderr=True, highlight=False)
    # In a storm servers are away all the time; the table tells what came of it.
    logging.getLogger("turnkeeper").addHandler(logging.NullHandler())
    folder = Path(tempfile.mkdtemp(prefix="turnkeeper-chaos-"))
    console.print(f"seed {seed}: CHAOS_SEED={seed} CHAOS_SECONDS={options.seconds:g} make chaos runs it again")
    with console.status("starting") as status:
        evidence = run_storm(forecast, folder, lambda progress: status.update(_line(progress, options.seconds)))
    found = report(seed, evidence)
    if options.json:
        sys.stdout.write(found.as_json() + "\n")
    else:
        found.print(Console())
    if found.is_clean:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        console.print(f"the logs are in {folder}", style="red")
    return int(not found.is_clean)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    environment = os.environ
    parser.add_argument("--seed", type=int, default=environment.get("CHAOS_SEED") or None)
    parser.add_argument("--seconds", type=float, default=environment.get("CHAOS_SECONDS") or 180.0)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--chats-per-second", type=float, default=CHATS_PER_SECOND)
    parser.add_argument("--json", action="store_true", help="print the figures and findings as JSON")
    return parser.parse_args()


def _line(progress: Progress, seconds: float) -> str:
    pranks = ", ".join(
        f"{count} {prank}" for prank, count in Counter(one.prank for one in progress.incidents).items()
    )
    return (
        f"{progress.seconds:.0f} of {seconds:.0f} s: {progress.asked} of {progress.planned} turns asked, "
        f"{progress.readers_done} of {progress.readers} readers done, {progress.workers} workers well; {pranks}"
    )


if __name__ == "__main__":
    sys.exit(main())
