"""Step 4: decide whether this source may reach this destination."""
