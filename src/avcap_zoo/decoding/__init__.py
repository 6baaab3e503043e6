"""Decoding loops over a language model that transformers' generate() does not have."""
