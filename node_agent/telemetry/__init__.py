"""Step 9: account: access records, metrics, readiness and the admin socket."""
