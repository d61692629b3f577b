"""Everything that reaches AWS: clients, calls, the fast path, and how botocore's errors are told."""
