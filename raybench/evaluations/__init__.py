"""Layer 3: evaluations. Each takes a batch of images and returns rows; none knows Ray or files."""
