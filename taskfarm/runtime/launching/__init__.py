"""Before MPI: which library, which launcher, which settings, and the program itself."""
