"""The public API: what `import apt_bench` gives. docs/api.md describes it.

Every function calls what the command line calls. Bad input raises UserError, never SystemExit.
"""
