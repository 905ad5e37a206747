"""What carries a planned merge out: streaming from disk, or on the device mesh."""
