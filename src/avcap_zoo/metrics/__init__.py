"""Scores of captions, as torchmetrics."""
