"""`growtx sweep` as a script, for `ray job submit --working-dir . -- python rayjobs/sweep.py ...`."""

import sys

from growtx.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
