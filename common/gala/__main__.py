"""`python -m gala`: the same as `gala`."""

from gala.cli import main

main()
