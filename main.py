"""`python main.py` serves the configuration in `config/`, as `orchestrator serve` does; it takes the same options."""

import sys

from orchestrator_core.__main__ import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
