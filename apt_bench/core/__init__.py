"""What every other package rests on: errors, files, configuration, text made safe to print."""
