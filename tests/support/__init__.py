"""Real parts for tests: servers and fixtures that more than one folder of tests uses."""
