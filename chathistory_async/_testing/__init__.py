"""What the pytest plugin's fixtures give: a proxy that injects faults, a clock, and an endpoint."""
