"""What plait costs, as ratios within one run, beside the targets: `python -m benchmarks`."""
