"""Compares methods on data with wrong annotations, tested on right ones.

    python -m benchmarks.noise.run --train FOLDER:trainval --test FOLDER:test --out runs/noise

For each kind and share of errors it plants them, once for all seeds, and runs `ohem compare` with the options after
`--`; repeat it to resume. The table has the mean mAP over the seeds, and its standard error.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from benchmarks.common import parse_with_more, print_table, run_main
from benchmarks.noise.plant import write_noisy

LEVELS = ("missing-0", "missing-10", "missing-30", "missing-50", "class-10", "class-30")
METHODS = ("frcn", "frcn-bg0", "ohem", "noise-aware")


def compare(level: str, options: argparse.Namespace) -> Path:
    """Compares the methods at one level, KIND-PERCENT; returns compare.json."""
    kind, percent = level.split("-")
    out: Path = options.out / level
    source = write_noisy(options.train, options.out / "data" / level, kind, int(percent) / 100)
    command = [sys.executable, "-m", "ohem", "compare", str(out), "--recipe", options.recipe]
    command += ["--methods", *options.methods, "--seeds", str(options.seeds), "--jobs", str(options.jobs)]
    command += ["--curve", "0", "--data.train", source, "--data.test", options.test, *options.options]
    subprocess.run(command, check=True)
    return out / "compare.json"


def main() -> None:
    """Runs the comparisons and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="right annotations, in which errors are planted")
    parser.add_argument("--test", required=True, help="right annotations to test on")
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), help="kind and percentage of errors")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--recipe", default="demo-frcn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/noise"))
    options = parse_with_more(parser)
    table = Table("errors")
    for level in options.levels:
        report = json.loads(compare(level, options).read_text())
        if not table.rows:
            for method in report["methods"]:
                table.add_column(method["name"])
        table.add_row(level, *(f"{m['map']:.1f} ± {m['standard_error'] or 0:.1f}" for m in report["methods"]))
    print_table(table)


if __name__ == "__main__":
    run_main(main)
