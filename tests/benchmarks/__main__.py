"""`python -m tests.benchmarks` runs the comparisons and writes what they found into docs/benchmarks.md."""

import subprocess
import sys

from tests.benchmarks.lab import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->\n"
COMPARISONS = ("streams", "short_turns", "latency", "growth", "against_peers")


def main() -> int:
    """Run one after the other; write nothing unless all of them came to an end."""
    found = []
    for name in COMPARISONS:
        command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--markdown", *sys.argv[1:]]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            return done.returncode
        found.append(done.stdout.rstrip("\n") + "\n")
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(found) + "\n" + END + after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
