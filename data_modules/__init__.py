"""Shared data modules: official file formats in, `avcap_zoo.batch.Batch` out. They know nothing of systems."""
