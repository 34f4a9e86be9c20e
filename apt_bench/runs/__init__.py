"""Run directories: episode records, what ran them, and records from elsewhere."""
