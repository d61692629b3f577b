"""Moving sessions from single items into an item collection."""
