"""A stand-in for a host package of the spawner layer, written for these tests from the public description only."""
