"""The captioning systems, one folder each, all of one shape."""
