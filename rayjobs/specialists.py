"""`growtx specialists` as a script, for `ray job submit --working-dir . -- python rayjobs/specialists.py ...`."""

import sys

from growtx.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["specialists", *sys.argv[1:]]))
