"""Decoding of sound, video and pictures from files."""
