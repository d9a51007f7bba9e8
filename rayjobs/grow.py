"""`growtx grow` as a script, for `ray job submit --working-dir . -- python rayjobs/grow.py ...`."""

import sys

from growtx.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["grow", *sys.argv[1:]]))
