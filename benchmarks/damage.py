"""Change single bits of a model's file, or cut it, and try to load it; no change may be accepted.

    PYTHONPATH=. python benchmarks/damage.py --cases 100

Half of the bits lie in the file's header, the others in its tensors. The status is 1 if a changed file was loaded.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tpgm.data import Preparation
from tpgm.models import Architecture, Pretrained, load, save

KIND = Architecture("timm/resnet10t", {"channels": [8, 8, 8, 8]})


def changes(whole: bytes, header: int, count: int, draw: random.Random) -> Iterator[bytes]:
    """`count` contents that differ from `whole` in one bit, beginning with the last, and a third as many cut short."""
    yield whole[:-1] + bytes([whole[-1] ^ 128])
    for number in range(count - 1):
        at = draw.randrange(header) if number % 2 else draw.randrange(header, len(whole))
        yield whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
    for _ in range(count // 3):
        yield whole[: draw.randrange(len(whole))]
    yield whole + b"\0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    model = KIND.build(3)
    start = Pretrained("r", model, {}, (), Preparation(32, (0.5,) * 3, (0.5,) * 3), "fc", ("a", "b", "c"), KIND)
    accepted, tried = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(path, start, model)
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")
        for content in changes(whole, header, given.cases, random.Random(given.seed)):
            path.write_bytes(content)
            tried += 1
            for architecture in (None, KIND):  # with one, a file of nobody's would do
                try:
                    load(path, architecture=architecture)
                except ValueError:
                    continue
                accepted += 1
                print(f"accepted: change {tried}")
    print(f"{tried} changed files of {len(whole):,} bytes, {header:,} of them header: {accepted} accepted")
    return int(accepted > 0)


if __name__ == "__main__":
    raise SystemExit(main())
