"""`python -m luciola.cli` is `luciola`."""

from . import main

main()
