"""How long `import tpgm` takes beyond torch: the median of several fresh interpreters, in seconds. Run: see --help."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CODE = "import time, torch; t = time.perf_counter(); import tpgm; print(time.perf_counter() - t)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="fresh interpreters")
    parser.add_argument("--limit", type=float, default=0.2, help="seconds; a longer median is a failure")
    options = parser.parse_args()
    seconds = [float(subprocess.check_output([sys.executable, "-c", CODE], text=True)) for _ in range(options.runs)]
    median = statistics.median(seconds)
    print(
        f"import tpgm beyond torch: median {median:.3f} s of {options.runs} runs "
        f"({min(seconds):.3f} to {max(seconds):.3f})"
    )
    return int(median > options.limit)


if __name__ == "__main__":
    sys.exit(main())
