"""Settings shared by every test of the suite."""

from __future__ import annotations

import os

try:
    from hypothesis import settings
except ImportError:  # the environment of the second MPI library needs only the MPI tests
    pass
else:
    # Timing of one example says nothing on a loaded machine: no deadline.
    settings.register_profile("taskfarm", deadline=None)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "taskfarm"))
