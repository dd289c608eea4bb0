"""``python -m hardy``."""

from hardy.cli.main import main

main()
