# Two commands do everything, and install what is missing: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
MNT ?= mnt
DEMO_PORT ?= 8511
# So many workers, each with its own Consul: tests wait more than they compute. 0 is one process, for a debugger.
JOBS ?= 4

MOUNT_PACKAGES = fusermount3=fuse3 setfattr=attr
DEMO_PACKAGES = curl=curl jq=jq
TEST_PACKAGES = $(DEMO_PACKAGES) rsync=rsync git=git vim=vim nano=nano make=make pgrep=procps unshare=util-linux \
	inotifywait=inotify-tools entr=entr

.PHONY: help demo demo-stop test bench lint install clean

help:
	@echo "make demo        a private Consul, mounted at ./$(MNT); make demo-stop ends it"
	@echo "make test        the whole test-suite, on a real Consul and real mounts"
	@echo "make bench       what the mount, the client and its backups cost, beside what stands beneath them"
	@echo "make lint        ruff and mypy"
	@echo "make install     put the commands into /usr/local/bin, where mount(8) finds them"

$(VENV)/.ready: setup.cfg setup.py
	@tools/install-packages $(MOUNT_PACKAGES)
	@tools/make-venv $(PYTHON) $(VENV)
	$(VENV)/bin/pip install -q -e .
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	@tools/install-packages $(TEST_PACKAGES)
	$(VENV)/bin/pip install -q -e .[test]
	@touch $@

$(VENV)/.ready-lint: $(VENV)/.ready
	$(VENV)/bin/pip install -q -e .[test,lint]
	@touch $@

demo: $(VENV)/.ready
	@tools/install-packages $(DEMO_PACKAGES)
	@tools/demo start $(VENV) $(MNT) $(DEMO_PORT)

demo-stop:
	@tools/demo stop $(VENV) $(MNT) $(DEMO_PORT)

test: $(VENV)/.ready-test
	@CONSUL="$$(tools/get-consul)" $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

# Half an hour: a million keys are among it. BENCH=--quick is without them; --write puts the results into docs/.
bench: $(VENV)/.ready-test
	@CONSUL="$$(tools/get-consul)" $(VENV)/bin/python benchmarks/filesystem.py $(BENCH)
	@CONSUL="$$(tools/get-consul)" $(VENV)/bin/python benchmarks/shares.py
	@CONSUL="$$(tools/get-consul)" $(VENV)/bin/python benchmarks/client.py
	@CONSUL="$$(tools/get-consul)" $(VENV)/bin/python benchmarks/transfer.py
	@CONSUL="$$(tools/get-consul)" $(VENV)/bin/python benchmarks/waiters.py

lint: $(VENV)/.ready-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

install: $(VENV)/.ready
	ln -sf "$(CURDIR)/$(VENV)/bin/consulfs" /usr/local/bin/consulfs
	@echo "linked /usr/local/bin/consulfs: mount -t fuse consulfs DIR works now"

clean:
	rm -rf $(VENV) .consul .demo build dist *.egg-info
