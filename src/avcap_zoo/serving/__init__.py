"""Trained systems at work: media files in, captions out."""
