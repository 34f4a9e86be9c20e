"""Models: the APT action expert, VLM backbones and rival architectures."""
