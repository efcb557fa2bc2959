"""Seconds until `import tpgm`, `tpgm --help` and the first name that needs torch, in fresh interpreters: medians.

`--against FOLDER` measures another checkout too, by PYTHONPATH, in turns with this one, so that a busy machine slows
both alike. Bytecode is compiled before the first measurement. Run: see --help.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CASES = {
    "import tpgm": "import tpgm",
    "tpgm --help": "import sys; sys.argv = ['tpgm', '--help']; from tpgm.cli import main; main()",
    "import tpgm, torch": "import tpgm, torch",
    "tpgm.TPGM": "import tpgm; tpgm.TPGM",
    "nothing": "",
}


def measure(code: str, root: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # -P: the folder this is called from is not on the path
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="fresh interpreters for each figure")
    parser.add_argument("--limit", type=float, default=0.3, help="CPU seconds that `tpgm --help` may take")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, such as the one before")
    options = parser.parse_args()
    roots = [HERE, *([options.against.resolve()] if options.against else [])]
    found: dict[tuple[str, Path], list[tuple[float, float]]] = {}
    for run in range(options.runs + 1):
        for name, code in CASES.items():
            for root in roots:
                seconds = measure(code, root)
                if run:  # the first one compiles
                    found.setdefault((name, root), []).append(seconds)
    print(f"median of {options.runs} fresh interpreters (least to most), seconds")
    for (name, root), seconds in found.items():
        wall, cpu = zip(*seconds, strict=True)
        texts = (f"{statistics.median(s):.3f} ({min(s):.3f} to {max(s):.3f})" for s in (wall, cpu))
        print(f"{'here' if root == HERE else 'against':8s} {name:20s} wall {next(texts)}   CPU {next(texts)}")
    help_cpu = statistics.median(cpu for _, cpu in found["tpgm --help", HERE])
    return int(help_cpu > options.limit)


if __name__ == "__main__":
    sys.exit(main())
