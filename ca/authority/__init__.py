"""The certificate authority's server: it alone builds and signs certificates."""
