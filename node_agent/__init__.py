"""The agent: one per node; it identifies, authorizes, encrypts and carries its workloads' TCP connections."""
