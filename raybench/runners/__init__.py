"""Layer 4: how tasks reach workers: a plain loop, or Ray actors behind one pure policy."""
