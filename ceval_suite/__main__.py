"""`python -m ceval_suite`."""

from ceval_suite.launch import main

main()
