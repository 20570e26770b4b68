# The two commands: `make demo` and `make test`. Both install what is missing (Debian or Ubuntu packages as root; otherwise they
# say what to install). Rust comes from https://rustup.rs or the distribution, 1.88 or newer.

CARGO ?= cargo

.PHONY: demo test install torture fuzz external bench bpf test-kernels clean

demo: ## Build, and tell the whole story on real files in a temporary directory (under a minute)
	./scripts/need.sh gcc libc6-dev fuse3
	$(CARGO) build --release --locked -p highwater
	$(CARGO) run --quiet --release --locked -p highwater -- demo

test: ## Everything that CI runs
	./scripts/test.sh

install: ## Install the binary into cargo's bin directory
	$(CARGO) install --locked --path crates/highwater

torture: ## The oracle for an hour, a new seed each time: make torture SECONDS=600 FS=xfs
	./scripts/torture.sh $(or $(FS),ext4) $(or $(SECONDS),3600)

fuzz: ## libFuzzer on one target or on all, for so long each: make fuzz TARGET=journal SECONDS=3600
	./scripts/fuzz.sh $(or $(TARGET),all) $(or $(SECONDS),60) $(SEED)

external: ## The external suites in full
	./tests/external/run.sh /var/tmp

bench: ## The benchmarks of docs/benchmarks.md
	./benches/run.sh

bpf: ## The BPF object of the write barrier in place, from its source; the result is committed
	./scripts/need.sh clang llvm
	./scripts/bpf.sh

test-kernels: ## The barrier and the source in place on Debian's kernels 6.1 and 6.12, in an emulated machine (minutes; not in CI)
	./scripts/test-kernels.sh

clean:
	$(CARGO) clean
