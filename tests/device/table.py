#!/usr/bin/env python3
"""Prints what both sides measured with each model, and the ratio of ours to mlx-lm's.

    table.py RESULTS PROMPT_TOKENS DECODE_TOKENS

A line of RESULTS is the model, the side, the turn and one line of JSON, with tabs between. A ratio is of two
measurements of one turn; the table has the median, the least and the most.
"""

import json
import statistics
import sys
from pathlib import Path

OURS, OTHER = "planaria", "mlx-lm"


def main():
    results, prompt, decode = sys.argv[1:]
    print("Tokens per second, medians of the turns. Ratio: planaria over mlx-lm, median (least to most).\n")
    print(f"{'model':10} {'phase':8} {'tokens':>6} {OURS:>10} {OTHER:>10}   {'ratio':27} turns  device")
    for model, turns in read(Path(results)).items():
        for phase, tokens in (("prefill", prompt), ("decode", decode)):
            print(row(model, phase, tokens, turns))


def read(path):
    """What was measured: by model, then by turn, then by side."""
    models = {}
    for line in path.read_text().splitlines():
        model, side, turn, measured = line.split("\t")
        models.setdefault(model, {}).setdefault(int(turn), {})[side] = json.loads(measured)
    return models


def row(model, phase, tokens, turns):
    def speeds(side):
        return [sides[side][f"{phase}_tokens_per_second"] for sides in turns.values() if side in sides]

    def median(side):
        return f"{statistics.median(speeds(side)):.1f}" if speeds(side) else "-"

    whole = [sides for sides in turns.values() if len(sides) == 2]
    ratios = [sides[OURS][f"{phase}_tokens_per_second"] / sides[OTHER][f"{phase}_tokens_per_second"] for sides in whole]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"
    devices = sorted({measured["device"] for sides in turns.values() for measured in sides.values()})
    return (f"{model:10} {phase:8} {tokens:>6} {median(OURS):>10} {median(OTHER):>10}   {ratio:27} "
            f"{len(ratios):>5}  {' and '.join(devices)}")


if __name__ == "__main__":
    main()
