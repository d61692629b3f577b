"""Conversations of agent frameworks in a ``ChatHistoryStore``: one module for each framework, and an extra for each."""
