"""The engines that run a planned merge: streaming from disk, or on the device mesh."""
