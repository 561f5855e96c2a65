"""Play many schedules: `python -m tests.simulation --schedules 20000 --processes 2`.

With `--code FOLDER` the drivers are those of another checkout, such as an older commit's: its faults are to be found.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Play, tell, and return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--stop-after", type=int, default=5, help="end after so many broken schedules")
    options = parser.parse_args()
    from tests.simulation.world import kept_trace, play

    folder = Path(tempfile.mkdtemp(prefix="graticule-simulation-"))
    seeds = range(options.first, options.first + options.schedules)
    ends: collections.Counter[str] = collections.Counter()
    broken, played, steps, start_s = 0, 0, 0, time.monotonic()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.simulation.world"])  # imports cost as much as a dozen schedules
    with processes.Pool(options.processes, maxtasksperchild=200) as pool:
        for seed, what, trace, ended in pool.imap_unordered(play, seeds, chunksize=4):
            played, steps = played + 1, steps + len(trace)
            ends.update(ended)
            if what:
                broken += 1
                print(f"schedule {seed}: {what}\n  {kept_trace(folder, seed, trace)}", flush=True)
                if broken >= options.stop_after:
                    pool.terminate()
                    break
            if played % 1000 == 0:
                print(f"{played} schedules, {time.monotonic() - start_s:.0f} s", flush=True)
    told = ", ".join(f"{end} {count}" for end, count in ends.most_common())
    print(
        f"{played} schedules, {steps} steps, {broken} broken, {time.monotonic() - start_s:.0f} s; drivers ended: {told}"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
