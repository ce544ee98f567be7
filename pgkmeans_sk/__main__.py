"""``python -m pgkmeans_sk`` is the command line ``pgkmeans``."""

from pgkmeans_sk.cli import main

if __name__ == "__main__":
    main()
