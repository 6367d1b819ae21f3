"""Steps 1 and 2: receive a workload's connection, and learn where it was going."""
