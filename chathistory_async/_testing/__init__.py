"""The parts of the pytest plugin's fixtures: a proxy that injects faults, a clock, and an endpoint."""
