"""``python -m persistent_dict``."""

from persistent_dict.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
