"""Layer 2: model adapters, one file for each way to name a model; the catalog lists them."""
