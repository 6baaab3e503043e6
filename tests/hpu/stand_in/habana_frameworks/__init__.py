"""Stands in for the vendor's bridge: two cards that are the processor, and a record of what was asked of them."""
