"""`finetune report DIR [DIR …]`: from records to figures, tables, summary.json and report.html."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import ConfigError, FinetuneError, Problem


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "How deep can be frozen, how sure is it, what does it save: from the records of one or several sweeps. "
        "Directories of one sweep are merged, different sweeps overlaid. The answer goes to stdout; figures, tables, "
        "summary.json and report.html to DIR/report."
    )
    parser.add_argument("sources", nargs="+", metavar="DIR", help="a sweep's output directory, e.g. runs/quickstart, "
                                                                   "or wandb:ENTITY/PROJECT/SWEEP_ID")
    parser.add_argument("--output_dir", help="where the report is written; default: DIR/report of the first DIR, or "
                                             "DIR/report-overlay with several sweeps")
    parser.add_argument("--margin", type=float, action="append", metavar="FRACTION",
                        help="loss of the metric that is tolerated, e.g. 0.01 for one point, or for a rise of 0.01 "
                             "in mse or loss (repeatable; the first is the headline); default: the sweep's own "
                             "`margin`")
    parser.add_argument("--population", choices=["new_text", "this_test_set"], default="new_text",
                        help="what the intervals speak about: new seeds and new text (default), or new seeds on "
                             "exactly these test rows")
    parser.add_argument("--metric", help="test metric to report; default: the one that picked the epoch")
    parser.add_argument("--by", action="append", default=[], metavar="KNOB",
                        help="make a curve per value of this knob instead of choosing its best value (repeatable)")
    parser.add_argument("--probe", action="store_true",
                        help="first make the layer probe (finetune probe DIR) of every DIR that has none; with torch, "
                             "in at most one pass over the texts")
    parser.add_argument("--publish", action="store_true",
                        help="put curve, tables and report.html into the W&B project of the sweep, as one run of job "
                             "type report (WANDB_MODE=offline: on disk, for `wandb sync`)")
    parser.add_argument("--json", action="store_true", help="print summary.json instead of the answer")


def main(args: argparse.Namespace) -> int:
    from analysis.report.report import write_report

    check(args.margin or [], args.by)
    if args.probe:
        _probe(args.sources)
    report = write_report(
        args.sources, margins=args.margin, population=args.population, metric=args.metric, by=args.by,
        folder=Path(args.output_dir) if args.output_dir else None,
    )
    for warning in report.summary["warnings"]:
        print(f"warning: {warning['text']}", file=sys.stderr)
    if args.publish:
        from analysis.publish import publish

        print(f"published: {publish(report, args.sources)}", file=sys.stderr)
    if args.json:
        print((report.folder / "summary.json").read_text(), end="")
    else:
        print(f"{report.summary['answer']}\n{report.folder / 'report.html'}")
    return 0


def _probe(sources: Sequence[str]) -> None:
    """The layer probes that are not there yet. Where one cannot be made, the report goes without, and it is said."""
    from analysis.load.records import PROBE_FILE

    for folder in map(Path, sources):
        if not folder.is_dir() or (folder / PROBE_FILE).exists():
            continue
        try:
            from finetune.sweep.probe import probe_directory

            probe_directory(folder)
        except (FinetuneError, ImportError) as error:
            print(f"no layer probe: {error}", file=sys.stderr)


def check(margins: Sequence[float], by: Sequence[str]) -> None:
    """Raises ConfigError with every wrong argument."""
    from finetune.config import KNOBS
    from finetune.errors import did_you_mean

    problems = [Problem("--margin", margin, "allowed: a fraction above 0 and below 1, e.g. 0.01 for one point")
                for margin in margins if not (isinstance(margin, int | float) and 0 < margin < 1)]
    problems += [Problem("--by", name, "no such knob" + did_you_mean(name, KNOBS))
                 for name in by if name not in KNOBS]
    problems += [Problem("--by", name, "allowed: any knob but what is compared anyway")
                 for name in by if name in ("freeze_depth", "strategy", "seed")]
    if problems:
        raise ConfigError(problems)
