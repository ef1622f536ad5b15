#!/usr/bin/env python3
"""Reads a results folder of gpu-table.sh and prints it as the tables of docs/performance.md: `read_table.py RESULTS`."""
import json
import os
import sys

COLUMNS = ["c1", "c8", "c64", "c512", "prefill", "prefix", "long"]


def lines(path):
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file if line.startswith("{")]


def cell(name, entry):
    if entry is None:
        return "-"
    if name == "c1":
        value, digits = entry["tpot_p50"], 2
    else:
        value, digits = entry["total_tok_s" if name == "prefill" else "out_tok_s"], 0
    return f"{value:,.{digits}f} ({entry['spread'] * 100:.1f} %)"


def machine(folder):
    path = os.path.join(folder, "machine.txt")
    if os.path.exists(path):
        with open(path) as file:
            commit, date, gpu = (file.readline().strip() for _ in range(3))
        print(f"{date}, {gpu}, commit {commit}")


def workloads(folder):
    print("| | c1 TPOT ms | " + " | ".join(f"{name} tok/s" for name in COLUMNS[1:]) + " | start s | kv waste c64, c512 | host us c512 |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for file in sorted(os.listdir(folder)):
        label, extension = os.path.splitext(file)
        entries = {line["label"].removeprefix(label + "-"): line for line in lines(os.path.join(folder, file))}
        if extension != ".jsonl" or "start" not in entries:
            continue
        waste = ", ".join(f"{entries[name]['kv_waste'] * 100:.1f} %" for name in ("c64", "c512") if name in entries)
        host = entries.get("c512", {}).get("host_us_per_step", "-")
        cells = [cell(name, entries.get(name)) for name in COLUMNS]
        print(f"| {label} | " + " | ".join(cells) + f" | {entries['start']['s']} | {waste} | {host} |")
        memory = entries.get("memory")
        if memory:
            taken, planned = memory["taken_bytes"], memory["planned_bytes"]
            print(f"  {label}: memory taken {taken / 2**30:.2f} GiB, planned {planned / 2**30:.2f} GiB ({taken / planned:.3f})", file=sys.stderr)


def http(folder):
    for line in lines(os.path.join(folder, "http.jsonl")):
        rate = f"{line['out_tok_s']:,.0f} tok/s, TTFT p50 {line['ttft_p50']} ms, p99 {line['ttft_p99']} ms, {line['errors']} errors"
        print(f"{line['label']}: {line['requests']} requests, {rate}")


def soak(folder):
    for line in lines(os.path.join(folder, "soak.jsonl")):
        print(", ".join(f"{key} {value}" for key, value in line.items()))
    path = os.path.join(folder, "soak-memory.txt")
    if os.path.exists(path):
        with open(path) as file:
            rows = [[int(field) for field in row.split()] for row in file]
        for name, column, unit in (("host", 1, "KiB"), ("GPU", 2, "MiB")):
            values = [row[column] for row in rows if len(row) == 3]
            if values:
                print(f"{name} memory over {len(values)} samples: first {values[0]}, last {values[-1]}, largest {max(values)} {unit}")


def kernels(folder):
    best = {}
    for line in lines(os.path.join(folder, "kernels.jsonl")):
        best.setdefault((line["model"], line["op"]), []).append(f"{line['shape']}: {line['us']:.1f} us {line['share'] * 100:.0f} %")
    for (model, op), cells in best.items():
        print(f"{model} {op}: " + "; ".join(cells))


def main():
    folder = sys.argv[1]
    machine(folder)
    workloads(folder)
    http(folder)
    soak(folder)
    kernels(folder)


main()
