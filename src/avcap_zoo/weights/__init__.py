"""Safe, strict loading of weights, and fingerprints of what was frozen."""
