#!/usr/bin/env bash
# Builds the project's two images for the test cluster and prints their names:
#     gala.sh              localhost/gala-operator:<key> and localhost/gala-worker:<key>, a line each
#     gala.sh --load       and loads them into the node, if there is one
#     gala.sh --stock      and puts them into the stock, for nodes that start later
#     gala.sh --names      prints the names of those built last
# The key is a hash of what goes into the image, so an image that is there already is not built again,
# and a pod of another key is another program. torch is the CPU build.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
latest=$GALA_CACHE/images-built # the names of those built last, for deploy.sh
if [ "${1:-}" = --names ]; then
	[ -e "$latest" ] || die "no images yet: make images"
	cat "$latest"
	exit 0
fi
project=$(cd "$GALA_HOME/../../.." && pwd)
cd "$project"

content() { # PATH...: a hash of the files' names and contents
	find "$@" -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum
}
common=(Dockerfile .dockerignore pyproject.toml common "$GALA_HOME/images/base.sh")
torch=torch==2.13.0+cpu
# The tag begins with a letter: helm's --set takes one of digits only, which a hash may be, for a number.
operator=localhost/gala-operator:of-$(content "${common[@]}" operator | cut -c1-12)
worker=localhost/gala-worker:of-$({ content "${common[@]}" worker; echo "$torch"; } | sha256sum | cut -c1-12)
mkdir -p "$GALA_CACHE"
exec 9>"$GALA_CACHE/.images-lock"
flock 9
build() { # NAME TARGET OPTION...
	local name=$1 target=$2
	shift 2
	! buildah inspect --type image "$name" >/dev/null 2>&1 || return 0
	log "building $name"
	SECONDS=0
	"$GALA_HOME/images/build.sh" "$name" "$project" --target "$target" "$@" \
		--label "org.opencontainers.image.version=${name##*:}"
	log "built $name in $SECONDS s"
	# Earlier ones go; their layers stay while the new one shares them.
	buildah images --format '{{.Name}}:{{.Tag}}' | grep "^${name%:*}:" | { grep -vxF "$name" || true; } | tail -n +3 |
		xargs -r buildah rmi >/dev/null || log "an earlier image stays: a build still uses it"
}
[ -e "$CONTAINERS_STORAGE_CONF" ] || "$GALA_HOME/images/base.sh"
build "$operator" operator
if ! buildah inspect --type image "$worker" >/dev/null 2>&1; then
	# The CPU build of torch: from PyTorch's own index, unless pip's configuration here finds it without.
	index=https://download.pytorch.org/whl/cpu
	if "$GALA_PYTHON" -m pip install -q --dry-run --no-deps --ignore-installed "$torch" >/dev/null 2>&1; then index=; fi
	build "$worker" worker --build-arg "TORCH=$torch" --build-arg "TORCH_INDEX=$index"
fi
[ "${1:-}" != --stock ] || "$GALA_HOME/load-image.sh" --stock "$operator" "$worker" >&2
flock -u 9 # several nodes may load them at once
if [ "${1:-}" = --load ]; then
	if [ -e "$GALA_STATE/run/node-ready" ]; then
		"$GALA_HOME/load-image.sh" --buildah "$operator" "$worker" >&2
		log "loaded into the cluster under $GALA_STATE"
	else
		log "no cluster is up: \`make cluster-up\`, and \`make images\` again to load them"
	fi
fi
printf '%s\n' "$operator" "$worker" | tee "$latest"
