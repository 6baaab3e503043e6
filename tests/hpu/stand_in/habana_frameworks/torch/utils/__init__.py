"""Parts of the bridge."""
