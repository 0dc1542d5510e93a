"""Loaded by every Python process of a test job: on SIGUSR2 it prints its stacks, so that a hang can be explained."""

import faulthandler
import signal

faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)
