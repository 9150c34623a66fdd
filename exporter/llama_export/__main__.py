"""``python -m llama_export`` is ``llama-export``."""

from llama_export.cli import main

main(prog_name="llama-export")
