"""`python -m srpo` is the console script."""

from srpo.cli.main import main

main()
