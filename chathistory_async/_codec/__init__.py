"""Codecs between Python values and their stored forms. Pure: no I/O. Only the codecs of messages import LangChain."""
