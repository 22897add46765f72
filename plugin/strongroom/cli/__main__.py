"""``python -m strongroom.cli``: the console script without its wrapper."""

from strongroom.cli.main import main

main()
