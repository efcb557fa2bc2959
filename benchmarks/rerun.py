"""Run stored rows again and compare what they counted.

    python benchmarks/rerun.py results/resnet-upstream.jsonl --label lp-ft --label tpgm-end --seed 0

Of each label the first row of that seed is taken. For every test the stored number of right answers stands beside the
one counted now; the exit status is 1 if any differs. What reproduction promises stands in the book's page on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

try:
    from tpgm.book.experiments import experiment
except ImportError:  # a checkout from before the book's machinery had a package of its own
    from tpgm import experiment  # type: ignore[attr-defined, no-redef]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--label", action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.rows.read_text(encoding="utf8").splitlines()]
    differ = False
    for label in given.label:
        stored = next(r for r in lines if r["config"]["label"] == label and r["config"]["seed"] == given.seed)
        config = {**stored["config"], "settings": dict(stored["config"]["settings"])}
        try:
            experiment.resolve(config)
        except ValueError:  # a setting that was removed since, of a schedule that this row does not use
            config["settings"].pop("tolerance", None)
        now = experiment.run(config)
        for test, counts in stored["accuracies"].items():
            right = now["accuracies"][test]["correct"]
            differ |= right != counts["correct"]
            print(f"{label} {test}: stored {counts['correct']}, now {right}, of {counts['total']}", flush=True)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
