#!/usr/bin/env bash
# Starts a single-node Kubernetes cluster under $GALA_STATE (see env.sh) and
# returns when it is ready; some 8 seconds. Then:
#     eval "$(tests/cluster/node/env.sh)"          sets KUBECONFIG; kubectl and helm on PATH
# The node is a set of namespaces of its own (mounts, network, pids, host name),
# like a node of `kind` without Docker: nothing of it shows on this machine but
# its cgroup, its processes and 127.0.0.1:$GALA_API_PORT.
# With --check it only says whether this machine can be a node, before much is installed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[ "$(id -u)" = 0 ] || die "run as root"
grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release || die "needs Debian bookworm: Kubernetes is built from its sources"
[ "$(uname -m)" = x86_64 ] || die "needs an x86-64 machine"
[ -e /sys/fs/cgroup/memory/cgroup.procs ] || die "needs cgroup v1 (or hybrid): boot with systemd.unified_cgroup_hierarchy=0"
[ "${1-}" != --check ] || exit 0
for d in "$GALA_K8S_BIN" "$GALA_TOOLS" "$GALA_NODE_TOOLS"; do
	[ -d "$d" ] || die "$d is missing: run install.sh"
done
case $GALA_STATE in /*) ;; *) die "GALA_STATE must be an absolute path" ;; esac
[ ${#GALA_STATE} -le 80 ] || die "GALA_STATE is too long for the path of a unix socket"
if [ -e "$GALA_STATE/run/unshare.pid" ]; then
	if grep -qs unshare "/proc/$(cat "$GALA_STATE/run/unshare.pid")/cmdline" &&
		"$GALA_TOOLS/kubectl" --kubeconfig "$GALA_KUBECONFIG" get --raw /readyz >/dev/null 2>&1; then
		log "up already: KUBECONFIG=$GALA_KUBECONFIG"
		exit 0
	fi
	"$GALA_HOME/down.sh" # what a crash or a reboot left
fi
SECONDS=0
mkdir -p "$GALA_STATE"/{run,log}
rm -f "$GALA_STATE"/log/*.log
# Whatever goes wrong below, leave nothing behind (the logs stay).
trap 'code=$?; [ $code = 0 ] || { log "up failed: see $GALA_STATE/log"; "$GALA_HOME/down.sh" || true; exit $code; }' EXIT

"$GALA_HOME/lib/pki.sh"
link_stock "$GALA_STATE/containerd" || true # then load-image.sh loads all of them

# Places that must exist for the node to mount its own folders over them. The node's
# first process keeps the lock, by which down.sh knows whether another node needs them.
exec 8<"${GALA_MADE_FOLDERS%/*}"
flock -s 8
for d in /var/lib/kubelet /var/log/pods /var/log/containers /var/lib/cni /tmp/hostpath_pv /run/containerd; do
	[ -d "$d" ] || { mkdir -p "$d"; echo "$d" >>"$GALA_MADE_FOLDERS"; }
done

# A cgroup of its own in every hierarchy: $cg/system for the services, $cg/kubepods
# (by kubelet) for the pods.
cg=gala-$(printf %s "$GALA_STATE" | sha256sum | cut -c1-8)
echo "$cg" >"$GALA_STATE/run/cgroup-name"
for h in /sys/fs/cgroup/*/; do
	[ -e "$h/cgroup.procs" ] || continue
	for d in "$h$cg" "$h$cg/system"; do
		mkdir -p "$d"
		if [ -e "$d/cpuset.cpus" ]; then # empty in a new cgroup, and then no process may enter
			cat "$h/cpuset.cpus" >"$d/cpuset.cpus"
			cat "$h/cpuset.mems" >"$d/cpuset.mems"
		fi
	done
	# By default the whole node weighs as much as a single process of this machine.
	[ ! -e "$h$cg/cpu.shares" ] || echo "$GALA_CPU_SHARES" >"$h$cg/cpu.shares"
done

# The namespaces. The unshare process enters the cgroups first, so that all that
# is started in the node is accounted there.
(
	for h in /sys/fs/cgroup/*/; do
		[ -e "$h/cgroup.procs" ] && echo "$BASHPID" >"$h$cg/system/cgroup.procs"
	done
	exec setsid unshare --mount --propagation private --net --pid --uts --ipc --mount-proc \
		--fork --kill-child \
		"$GALA_HOME/lib/node-init.sh" </dev/null >"$GALA_STATE/log/node-init.log" 2>&1
) &
outer=$!
echo "$outer" >"$GALA_STATE/run/unshare.pid"
for _ in $(seq 600); do
	[ -e "$GALA_STATE/run/node-ready" ] && break
	kill -0 "$outer" 2>/dev/null || break
	sleep 0.1
done
pgrep -P "$outer" >"$GALA_STATE/run/init.pid" || true
[ -e "$GALA_STATE/run/node-ready" ] || { cat "$GALA_STATE/log/node-init.log" >&2; die "the node's namespaces could not be made"; }
init=$(cat "$GALA_STATE/run/init.pid")

# The services, started from within; then the way in from this machine.
exec 8<&-
"$GALA_HOME/svc.sh" start-all
setsid "$GALA_PYTHON" "$GALA_HOME/lib/relay.py" "$init" \
	"$GALA_API_PORT=127.0.0.1:6443" </dev/null >"$GALA_STATE/log/relay.log" 2>&1 &
echo $! >"$GALA_STATE/run/relay.pid"
for i in $(seq 300); do
	"$GALA_TOOLS/kubectl" --kubeconfig "$GALA_KUBECONFIG" get --raw /readyz >/dev/null 2>&1 && break
	if [ "$i" = 300 ] || ! kill -0 "$(cat "$GALA_STATE/run/relay.pid")" 2>/dev/null; then
		tail -1 "$GALA_STATE/log/relay.log" >&2
		die "the API is not reached at 127.0.0.1:$GALA_API_PORT (GALA_API_PORT)"
	fi
	sleep 0.1
done
log "up in $SECONDS s: KUBECONFIG=$GALA_KUBECONFIG"
