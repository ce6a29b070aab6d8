# The whole interface of the build. Meson and Ninja do the work; see docs/architecture.md.
BUILD ?= build
MESON_FLAGS ?= --buildtype=release -Db_ndebug=false
export BENCH

all: $(BUILD)/build.ninja
	@ninja -C $(BUILD) $(NINJA_FLAGS)
	@scripts/publish-outputs $(BUILD)

$(BUILD)/build.ninja: scripts/setup
	@scripts/setup build
	@test -f $@ || meson setup $(BUILD) $(MESON_FLAGS)

run: all
	@scripts/run-demo $(BUILD)

check: all
	@scripts/check $(BUILD)

check-long: all
	@scripts/check-long $(BUILD)

bench: all
	@scripts/bench $(BUILD)

fuzz:
	@scripts/fuzz

install: all
	@DESTDIR=$(DESTDIR) meson install -C $(BUILD) --no-rebuild

clean:
	@rm -rf $(BUILD) build-*

.PHONY: all run check check-long bench fuzz install clean
