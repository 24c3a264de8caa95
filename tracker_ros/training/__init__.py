"""Training of the package's own weights: data, augmentation, losses and the recipes `distill` and `dimp18`."""
