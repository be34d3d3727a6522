"""`python -m bitstill.cli`."""

from bitstill.cli.main import main

main()
