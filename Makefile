# Type `make` for what there is.

# The Python to build the environment on (3.10 to 3.13), and where the environment goes.
PYTHON ?= python3
VENV ?= .venv
# torch: the tested version, unless named here, for example TORCH=torch==2.13.0+cpu (none: no torch at all);
# TORCH_INDEX: a further package index to find it in.
TORCH ?=
TORCH_INDEX ?=

# Options of `make demo`; an empty one leaves the choice to the demo.
VIDEO ?=
BOX ?=
TRACKER ?=
WEIGHTS ?=
DEVICE ?=
SEED ?=
OUT ?=
# PAGE=1: draw the box on a page in the browser.
PAGE ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup test test-slow gpu-check lint demo train-smoke fuzz reliability lock clean
# Minutes of `make fuzz`; options of `make reliability`.
MINUTES ?= 10
RELIABILITY ?=

# Nothing started from here is heard by, or listens to, other machines (the second name is Humble's).
export ROS_AUTOMATIC_DISCOVERY_RANGE = LOCALHOST
export ROS_LOCALHOST_ONLY = 1

IN_VENV = source $(VENV)/ros_env.sh &&

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make the environment that the other targets run in (PYTHON= VENV= TORCH= TORCH_INDEX=)
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --torch "$(TORCH)" --torch-index "$(TORCH_INDEX)"

lint: setup  ## ruff and mypy
	@$(IN_VENV) ruff check . && ruff format --check . && mypy

test: setup lint  ## the checks, and the tests without the minutes-long ones
	@$(IN_VENV) python -m pytest -m "not slow"

test-slow: setup  ## the minutes-long tests
	@$(IN_VENV) python -m pytest -m slow

gpu-check: setup  ## on a CUDA device: its tests, and of every tracker boxes, times and waits a frame (OUT=)
	@$(IN_VENV) python -m tracker_ros gpu-check --tests test --out "$(if $(OUT),$(OUT),out/gpu-check)"

demo: setup  ## track a target in a real ROS 2 graph (VIDEO= BOX=x,y,w,h TRACKER= WEIGHTS= DEVICE= SEED= OUT= PAGE=1)
	@$(IN_VENV) python -m tracker_ros demo \
	  $(if $(VIDEO),--video "$(VIDEO)") $(if $(BOX),--box "$(BOX)") $(if $(TRACKER),--tracker "$(TRACKER)") \
	  $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(DEVICE),--device "$(DEVICE)") $(if $(SEED),--seed "$(SEED)") \
	  $(if $(OUT),--out "$(OUT)") $(if $(PAGE),--page)

train-smoke: setup  ## train for two minutes on rendered data, which needs no files
	@$(IN_VENV) python -m tracker_ros train smoke --out out/train-smoke

fuzz: setup  ## look for files of weights that harm their reader, for MINUTES= (10)
	@$(IN_VENV) TRACKER_ROS_FUZZ_MINUTES="$(MINUTES)" python -m pytest -m slow test/test_fuzz_weights.py -q

reliability: setup  ## try the node on every fault there is, and write docs/reliability.md: 45 minutes (RELIABILITY=--quick: 3)
	@$(IN_VENV) python tools/reliability.py $(RELIABILITY)

lock:  ## pin what is installed, with hashes, in requirements.lock (needs uv)
	@grep -v '^torch' requirements.txt | uv pip compile --universal --python-version 3.10 --generate-hashes \
	  --no-annotate --no-header --allow-unsafe --output-file requirements.new - requirements/dev.txt \
	  requirements/build.txt requirements/ros.txt
	@{ sed -n '/^#/!q;p' requirements.lock; cat requirements.new; } > requirements.tmp
	@mv requirements.tmp requirements.lock && rm requirements.new

clean:  ## remove the environment and everything generated
	rm -rf "$(VENV)" build install log out .pytest_cache .ruff_cache .mypy_cache *.egg-info
