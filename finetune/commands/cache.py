"""`finetune cache`: what is kept to be reused, and how much room it takes."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from finetune.files import cache_root


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Activations of frozen layers, kept so that no trial computes them again. Everything here can be computed "
        f"again: clearing costs time, never a result. FINETUNE_CACHE says where it lies (now: {cache_root()})."
    )
    parser.add_argument("action", nargs="?", choices=("show", "clear"), default="show",
                        help="show lists the entries, least recently used first (default); clear removes them")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def main(args: argparse.Namespace) -> int:
    from finetune.prefix.budget import disk_budget
    from finetune.prefix.store import PrefixStore

    store = PrefixStore()
    if args.action == "clear":
        freed = store.clear()
        print(json.dumps({"freed_bytes": freed}) if args.json else f"freed {size_text(freed)} in {store.root}")
        return 0
    entries = [{"key": listing.key, "bytes": listing.size, "used": listing.used, **listing.facts}
               for listing in store.listing()]
    total, budget = sum(entry["bytes"] for entry in entries), disk_budget(store)
    if args.json:
        print(json.dumps({"folder": str(store.root), "bytes": total, "budget_bytes": budget, "entries": entries}))
    else:
        print(_table(entries) + f"{len(entries)} entries, {size_text(total)} of at most {size_text(budget)} (a quarter "
              f"of the free disk; --prefix_budget sets it) in {store.root}")
    return 0


def _table(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return ""
    lines = [f"{'last used':16}  {'model':12}  {'layers':>6}  {'rows':>8}  {'tokens':>10}  {'size':>9}"]
    lines += [f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(entry['used']))}  {entry['model'][:12]:12}  "
              f"{entry['boundary']:>6}  {entry['rows']:>8}  {entry['tokens']:>10}  {size_text(entry['bytes']):>9}"
              for entry in entries]
    return "\n".join(lines) + "\n"


def size_text(size: float) -> str:
    """1234567 -> '1.2 MB'."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
