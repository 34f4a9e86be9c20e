"""Code as policies: a language model writes Python code that moves the robot through an API."""
