"""The identity contract shared by the agents and the certificate authority."""
