"""The single-item layout, as langchain-community has it: one item per session."""
