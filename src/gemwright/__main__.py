"""`python -m gemwright`."""

from gemwright.cli import main

main()
