"""Eight-bit training, which nothing here uses; lightning-habana imports it."""
