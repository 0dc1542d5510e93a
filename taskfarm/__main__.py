"""``python -m taskfarm``: the same as the command ``taskfarm``."""

from taskfarm.cli import main

raise SystemExit(main())
