"""Layer 2: selections of images, one file for each kind of source; the catalog lists them."""
