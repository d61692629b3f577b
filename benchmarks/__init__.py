"""Benchmarks of chathistory_async beside what a user would pick instead: ``python -m benchmarks``."""
