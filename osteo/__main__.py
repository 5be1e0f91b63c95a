"""python -m osteo: the same as the console script."""

from osteo.cli import main

main()
