"""`python -m tests.simulators`: the same as serve.py."""

from .serve import main

main()
