"""`growtx benchmark` as a script, for `ray job submit --working-dir . -- python rayjobs/benchmark.py ...`."""

import sys

from growtx.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
