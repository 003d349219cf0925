# `make run` and `make test` need Python 3.11 or newer and, on Debian, root: they install the rest. See .ci/setup.

.PHONY: help run test test-more fuzz-answers soak soak-nodes soak-standby soak-browser soak-strangers silence power-cuts page-cost scale bench bench-quick sizes lint pins clean
.NOTPARALLEL:

# What is installed in .venv is what runs, whatever the caller's shell points to.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

help:
	@echo 'make run     the demo: a fake SendX, the proxy and a shop; prints the addresses to open'
	@echo '             make run ARGS="--port 9000 --sandbox-port 9001" for other ports'
	@echo 'make test    every check and test, as CI runs them'
	@echo '             make test ARGS="tests/config/test_settings.py -k secret" for some of the tests'
	@echo '             make test PYTHON=python3.13 on another Python'
	@echo 'make test-more   the main job on the lowest versions that pyproject.toml allows, and on the newest; needs the network: some five minutes'
	@echo 'make fuzz-answers   100,000 fuzzed answers to a real forwarder, and the fate of the pushes: some ten minutes'
	@echo 'make soak    200 kills under load, with a SendX that misbehaves and a bad network path to it: some six minutes'
	@echo 'make soak-nodes   100 faults of every kind on three nodes with PostgreSQL: some eleven minutes'
	@echo 'make soak-standby 40 faults of a synchronous standby and its primary under three nodes: some eight minutes'
	@echo 'make soak-browser   1,000 leave events in each of three browsers: some four minutes'
	@echo 'make soak-strangers   a flood of strangers beside customers and newcomers, on both stores: some twenty-five minutes'
	@echo 'make silence   whether answers tell whose address was typed, by 2,000 pairs of each kind: some six minutes'
	@echo 'make power-cuts   the power is cut at 4,000 moments of a run that strace recorded: some three minutes'
	@echo 'make page-cost   what the script costs the main thread of a page in Chromium'
	@echo 'make scale   what a contact who always fails and a million waiting pushes cost: some four minutes'
	@echo 'make bench   this proxy beside what people write instead, on one core, and on PostgreSQL: some twenty-five minutes'
	@echo '             make bench-quick for the first table in small: under a minute'
	@echo 'make sizes   how large the script is, beside others from npm; needs the network'
	@echo 'make lint    the checks without the tests: ruff, mypy'
	@echo 'make pins    bring constraints.txt up to date: the newest version of everything'
	@echo 'make clean   remove .venv and everything else that these commands made'

run:
	@bash .ci/setup run
	@exec .venv/bin/scq-proxy demo $(ARGS)

# One more than there are cores, up to four: most tests wait for a server or a browser.
WORKERS = $(shell n=$$(nproc); echo $$((n < 3 ? n + 1 : 4)))

test:
	@bash .ci/setup test
	@bash .ci/lint
	@printf '\n== pytest\n'
	@exec .venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-more:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.bounds $(ARGS)

fuzz-answers:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.fuzz_answers $(ARGS)

soak:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.soak --kills 200 $(ARGS)

soak-nodes:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.soak_nodes --faults 100 $(ARGS)

soak-standby:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.soak_standby --faults 40 $(ARGS)

soak-browser:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.soak_browser --leaves 1000 --engine all $(ARGS)

soak-strangers:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.soak_strangers $(ARGS)

silence:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.silence $(ARGS)

power-cuts:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.power_cuts --cuts 4000 $(ARGS)

page-cost:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.page_cost $(ARGS)

scale:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.scale $(ARGS)

bench:
	@bash .ci/setup bench
	@exec .venv/bin/python -m tests.load.bench $(ARGS)

bench-quick:
	@bash .ci/setup bench
	@exec .venv/bin/python -m tests.load.bench --quick $(ARGS)

sizes:
	@bash .ci/setup test
	@exec .venv/bin/python -m tests.load.sizes $(ARGS)

lint:
	@bash .ci/setup lint
	@bash .ci/lint

pins:
	@bash .ci/pins

clean:
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
