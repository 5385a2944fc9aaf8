"""From raw files to token ids in batches."""
