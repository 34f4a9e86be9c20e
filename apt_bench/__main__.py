"""`python -m apt_bench`: the command line without the console script."""

from apt_bench.core.module_search_path import installed_first

installed_first()  # before anything that a file in the working directory may shadow

from apt_bench.cli import main  # noqa: E402

main()
