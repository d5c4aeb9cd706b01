"""`python -m turnkeeper_worker.cli`, where the script is not on the path."""

from turnkeeper_worker.cli import main

main()
