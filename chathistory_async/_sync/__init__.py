"""The private event loop that runs the synchronous methods."""
