#!/usr/bin/env bash
# Installs (or upgrades) the operator by its chart, with the images that were built last, into the cluster of KUBECONFIG:
#     deploy.sh [more options of `helm upgrade`]
# Without KUBECONFIG into the test cluster. The images must be there: images/gala.sh --load. A resource definition that the
# tests left there is taken over.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
export KUBECONFIG=${KUBECONFIG:-$GALA_KUBECONFIG} PATH=$PATH:$GALA_TOOLS
take=()
for flag in --take-ownership --force-conflicts; do # from helm 4 on
	if helm upgrade --help | grep -q -e "$flag "; then take+=("$flag"); fi
done
names=$("$GALA_HOME/images/gala.sh" --names)
mapfile -t images <<<"$names"
operator=${images[0]} worker=${images[1]}
# helm's own folders go with the cluster
for kind in CACHE CONFIG DATA; do export "HELM_${kind}_HOME=$GALA_STATE/helm"; done
helm upgrade --install gala "$GALA_HOME/../../../charts/gala-operator" \
	--namespace gala-system --create-namespace --wait --timeout 180s "${take[@]}" \
	--set "image.repository=${operator%:*},image.tag=${operator##*:},image.pullPolicy=IfNotPresent" \
	--set "worker.image.repository=${worker%:*},worker.image.tag=${worker##*:}" "$@"
