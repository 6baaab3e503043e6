"""The commands `lightning` and `avcap`."""
