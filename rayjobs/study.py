"""`growtx study` as a script, for `ray job submit --working-dir . -- python rayjobs/study.py ...`."""

import sys

from growtx.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
