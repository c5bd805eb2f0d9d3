"""Layer 0: protocols, specs, keys, the catalog and errors; everything else may import it."""
