"""Layer 1: numbers from rows: scores, intervals, comparisons. NumPy in, NumPy out."""
