"""Trains for an hour and measures whether memory, open files or threads grow. For Linux.

    python -m benchmarks.scale.soak --train FOLDER:trainval --test FOLDER:test --out runs/soak -- --model.weights FILE

It starts `ohem train` with loader workers, TensorBoard, the mining log, pictures, snapshots and checkpoints, with the
options after `--`, and stops it after `--seconds` with SIGTERM. The slope of the resident memory is a least-squares fit
over the lowest of each 50 steps, after the first 500.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.common import announce, parse_with_more, print_table, run_main, write_report
from ohem.errors import InputError
from ohem.training.logs.metrics_log import NAME

FIRST = 500
"""Steps that are left out: caches fill in them."""
WINDOW = 50
"""Steps of which the lowest memory is used: within a step it rises and falls, by 50 MB in SqueezeNet."""
LOGGED = ["--run.loggers", "tensorboard", "--run.pictures-every", "100", "--run.log-every", "10"]
SAVED = ["--run.checkpoint-every", "200", "--run.snapshot-every", "1000", "--run.loss-every", "1000"]


def main() -> None:
    options = _options()
    command = [sys.executable, "-m", "ohem", "train", str(options.out), "--recipe", options.recipe]
    command += ["--data.train", options.train, "--data.test", options.test, "--data.workers", str(options.workers)]
    command += [*LOGGED, *SAVED, "--solver.steps", "10000000", "--solver.seed", str(options.seed), *options.options]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    log = options.out.with_suffix(".log")
    announce(f"training for {options.seconds} s; its output is in {log}")
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        samples = _watch(process, options)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    later = [sample for sample in samples if sample["step"] > FIRST]
    if len(later) < 2:
        raise InputError(f"{options.out} is at step {_step(options.out)}, and {FIRST} are left out: train for longer")
    report = _report(later)
    table = Table("", "first", "last", "highest", title=f"steps {later[0]['step']} to {later[-1]['step']}")
    for name in ("rss_mb", "files", "threads", "processes"):
        values = [sample[name] for sample in later]
        table.add_row(name, f"{values[0]:.0f}", f"{values[-1]:.0f}", f"{max(values):.0f}")
    print_table(table)
    print(f"resident memory: {report['mb_per_1000_steps']:+.2f} MB in 1000 steps")
    write_report(options.out.with_suffix(".json"), {**report, "samples": samples})


def _watch(process: subprocess.Popen[bytes], options: argparse.Namespace) -> list[dict[str, Any]]:
    samples, deadline = [], time.monotonic() + options.seconds
    while time.monotonic() < deadline:
        time.sleep(options.every)
        if process.poll() is not None:
            raise InputError(f"the training ended with exit status {process.returncode}: see {options.out}.log")
        if step := _step(options.out):
            samples.append({"step": step, **_measure(process.pid)})
    return samples


def _step(run: Path) -> int:
    path = run / NAME  # not `read_metrics`, which also reads the checkpoint
    lines = path.read_text().splitlines() if path.exists() else []
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0


def _measure(pid: int) -> dict[str, float]:
    """Returns the resident memory, open files and threads of a process and its children together."""
    pids = [pid, *_children(pid)]
    totals = {"rss_mb": 0.0, "files": 0.0, "threads": 0.0, "processes": float(len(pids))}
    for one in pids:
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            totals["files"] += len(list(Path(f"/proc/{one}/fd").iterdir()))
        except OSError:  # it has ended
            continue
        totals["rss_mb"] += int(status["VmRSS"].split()[0]) / 1024
        totals["threads"] += int(status["Threads"])
    return totals


def _children(pid: int) -> list[int]:
    try:
        own = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [grandchild for child in own for grandchild in _children(child)]


def _report(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    lowest: dict[int, float] = {}
    for sample in samples:
        place = sample["step"] // WINDOW
        lowest[place] = min(sample["rss_mb"], lowest.get(place, np.inf))
    slope = np.polyfit(np.array(list(lowest)) * WINDOW, list(lowest.values()), 1)[0] if len(lowest) > 1 else np.nan
    return {"mb_per_1000_steps": float(1000 * slope), "steps": int(samples[-1]["step"])}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="data set to train on")
    parser.add_argument("--test", required=True, help="data set to test on")
    parser.add_argument("--recipe", default="small-ohem")
    parser.add_argument("--workers", type=int, default=2, help="loader workers")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder of the run")
    return parse_with_more(parser)


if __name__ == "__main__":
    run_main(main)
