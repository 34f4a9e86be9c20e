"""Reports: tables, charts and pages from episode records. Imports neither a simulator nor torch."""
