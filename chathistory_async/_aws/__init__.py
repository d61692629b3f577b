"""Everything that reaches AWS: clients, calls, the fast path, and the mapping of botocore's errors."""
