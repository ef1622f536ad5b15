#!/usr/bin/env python3
"""Whether a server's memory stayed flat: `check_memory.py FILE [FILE...]`; lines of seconds, host memory in KiB and, perhaps, GPU memory in MiB.

Compares the mean of the first fifth of the samples with that of the last fifth, prints both, and fails when one has grown by more than its bound.
"""
import sys

# (name, unit, share that it may grow by): an allocator's pools breathe, a GPU's memory is taken at the start.
COLUMNS = [("host", "KiB", 0.02), ("GPU", "MiB", 0.001)]
MIN_SAMPLES = 10


def main():
    rows = []
    for path in sys.argv[1:]:
        with open(path) as file:
            rows += [[int(field) for field in line.split()] for line in file]
    if len(rows) < MIN_SAMPLES:
        sys.exit(f"check_memory: {len(rows)} samples, at least {MIN_SAMPLES} are needed")
    faults = []
    for column, (name, unit, bound) in enumerate(COLUMNS, start=1):
        values = [row[column] for row in rows if len(row) > column]
        if not values:
            continue
        fifth = max(len(values) // 5, 1)
        first, last = sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth
        growth = last / first - 1
        print(
            f"{name} memory over {rows[-1][0] - rows[0][0]} s, {len(values)} samples: first fifth {first:,.0f}, last fifth {last:,.0f} {unit}"
            f" ({growth:+.2%}, at most {bound:+.2%}), least {min(values):,}, most {max(values):,}"
        )
        if growth > bound:
            faults.append(name)
    if faults:
        sys.exit(f"check_memory: {' and '.join(faults)} memory grew")


main()
