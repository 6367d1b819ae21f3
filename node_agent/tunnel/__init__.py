"""Step 7: mutual TLS to the peer agent: frames, pool, client and server."""
