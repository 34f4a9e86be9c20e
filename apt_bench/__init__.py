"""apt-bench: does a robot policy follow the instruction, or only what it sees?"""

__version__ = "0.1.0"
