"""The session index: one summary item for each session, and the listing of an owner's sessions."""
