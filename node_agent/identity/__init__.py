"""Step 6: who we are: SVIDs, their rotation, and the TLS contexts made of them."""
