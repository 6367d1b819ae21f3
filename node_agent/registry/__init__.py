"""Step 3: resolve an address to a service, its endpoints and their workloads."""
