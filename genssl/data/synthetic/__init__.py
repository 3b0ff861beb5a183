"""House numbers rendered on the spot, with exact masks."""
