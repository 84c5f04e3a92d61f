"""Fuzz the parsers of Python: `make fuzz` by coverage (atheris), `make test` with the seeds that it kept."""
