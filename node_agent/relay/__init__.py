"""Step 8: move the bytes: the relay threads and their pumps."""
