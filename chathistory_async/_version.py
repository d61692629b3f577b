"""The version. Archives are made with it, and it needs no metadata, which bundlers of applications leave out."""

__version__ = "0.1.0"
