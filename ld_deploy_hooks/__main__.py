"""``python -m ld_deploy_hooks`` is ``ld-deploy``."""

from __future__ import annotations

import sys

from ld_deploy_hooks.cli import main

if __name__ == "__main__":
    sys.exit(main())
