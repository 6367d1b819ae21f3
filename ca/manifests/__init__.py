"""Kubernetes manifests: who runs where, read by the CA and by the agents."""
