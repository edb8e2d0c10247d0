"""Does gating pay? Mixtures beside what they have to beat, on real data."""
