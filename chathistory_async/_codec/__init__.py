"""Codecs between Python values and their stored forms, without I/O. Only ``messages`` imports LangChain."""
