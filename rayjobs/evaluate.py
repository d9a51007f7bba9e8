"""`growtx evaluate` as a script, for `ray job submit --working-dir . -- python rayjobs/evaluate.py ...`."""

import sys

from growtx.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
