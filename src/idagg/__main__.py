"""``python -m idagg``."""

import sys

if not sys.flags.safe_path:
    # Without -P, `python -m` looks for every library in the working folder first: a file named redis.py or
    # queue.py there would be run in place of the library.
    del sys.path[0]

from idagg.cli import main

if __name__ == "__main__":
    sys.exit(main())
