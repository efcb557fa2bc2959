"""The command ``tpgm data``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Add the command to the parser's `commands`; debug: the parent that all commands have."""
    data = commands.add_parser(
        "data",
        parents=[debug],
        help="build the icon benchmark, show its counts, splits and licences; fetch the tweets",
        epilog="Examples: tpgm data build; tpgm data counts; tpgm data splits --style outline; tpgm data licences; "
        "tpgm data tweets",
    )
    data.add_argument("what", choices=("build", "counts", "splits", "licences", "tweets"))
    data.add_argument("--subset", default="downstream", choices=("downstream", "upstream"), help="which icons")
    data.add_argument("--style", default="solid", help="splits: the ID style (default: solid)")
    data.add_argument(
        "--source", help="the tarball of the icon package where npm cannot be used, or 'tiny' for synthetic icons"
    )
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    data.set_defaults(run=_data)


def _data(args: argparse.Namespace) -> None:
    from tpgm import data
    from tpgm.data.cache import cache_dir
    from tpgm.data.tables import licence_counts

    if args.what == "tweets":
        from tpgm.text import fetch, topics

        if not args.source:
            fetch()
        print(topics.table(args.source or ""))
        return
    common = {"source": args.source, "progress": not args.quiet}
    if args.what == "splits":
        if args.subset == "upstream":
            print(data.splits_table(data.icons_upstream(**common)))
        else:
            print(data.splits_table(data.icons(args.style, **common)))
        return
    found = data.icon_collection(args.subset, **common)
    if args.what == "build":
        where = "made in memory" if args.source == "tiny" else f"in {cache_dir() / 'icons'}"
        print(f"{len(found.names):,} {args.subset} icons of {len(found.class_names)} classes, {where}")
        print(f"SHA-256 {found.checksum}")
    elif args.what == "counts":
        print(data.icon_table(found))
    else:
        print(f"{data.licence_table(found.set_info)}\n\n{licence_counts(found.set_info)}")
