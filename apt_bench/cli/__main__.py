"""`python -m apt_bench.cli`: the command line without an installed script."""

from apt_bench.cli import main

main()
