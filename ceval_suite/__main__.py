"""`python -m ceval_suite`."""

from ceval_suite.cli import main

main()
