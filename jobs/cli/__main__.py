"""`python -m jobs.cli`, the same as `pagefleet`."""

from jobs.cli import main

main()
