"""Layer 1: pure functions on tensors. They take callables, never models, and know no files.

Shape legend: N images, C channels, H height, W width, K classes, S segments, M samples
(perturbed copies of one image), T targets explained at once.
"""
