"""`python -m lipsyncd` is the same as `lipsyncd`."""

from lipsyncd.cli.main import main

main(prog_name="lipsyncd")
