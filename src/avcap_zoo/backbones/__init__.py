"""Encoders and language models, built from a hub folder, an official checkpoint or a config alone."""
