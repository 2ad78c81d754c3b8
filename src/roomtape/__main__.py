"""`python -m roomtape`: the command line, for children that are started by the path of their interpreter."""

from roomtape.cli import main

main()
