"""The single-item layout, which is langchain-community's: one item for each session."""
