"""Imported before everything else that the command line needs."""

from apt_bench.core.module_search_path import installed_first

installed_first()
