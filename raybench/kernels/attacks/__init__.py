"""Layer 1: attacks, one pure function in one file each; they see callables and tensors only."""
