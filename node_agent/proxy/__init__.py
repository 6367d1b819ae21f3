"""The stories: the whole life of an outbound and of an inbound connection."""
