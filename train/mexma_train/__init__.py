"""MEXMA training: bitext in, Hugging Face checkpoint folder out. Start with run.py; `mexma-train --help` lists the commands."""
