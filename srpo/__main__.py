"""Makes `python -m srpo` run the command `srpo`."""

from srpo.cli.main import main

main()
