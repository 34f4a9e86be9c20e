"""Shared by all packages: errors, files, configuration, text that is safe to print, versions and hashes."""
