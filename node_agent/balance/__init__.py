"""Step 5: choose an endpoint of the service."""
