"""The live page: Stable Diffusion in a browser. See build.py."""
