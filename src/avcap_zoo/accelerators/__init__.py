"""Devices that Lightning does not know by itself."""
