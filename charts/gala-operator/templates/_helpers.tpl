{{/* Names. A release called `gala` gives `gala-operator`, `gala-operator` itself, anything else `<release>-gala-operator`. */}}
{{- define "gala-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else if hasPrefix (printf "%s-" .Release.Name) .Chart.Name }}
{{- .Chart.Name }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "gala-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "gala-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Labels. Selectors are a part that never changes: a Deployment's cannot be changed. By app.kubernetes.io/name every
run's NetworkPolicy lets the operator in, so it is the same whatever the release is called. */}}
{{- define "gala-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "gala-operator.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_"))
  "app.kubernetes.io/version" (.Chart.AppVersion | toString)
  "app.kubernetes.io/part-of" "gala"
  "app.kubernetes.io/managed-by" .Release.Service
}}
{{- merge (include "gala-operator.selectorLabels" . | fromYaml) $own .Values.commonLabels | toYaml }}
{{- end }}

{{/* repository:tag, or repository@digest. Called with (dict "image" VALUES "root" $). */}}
{{- define "gala-operator.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{/* What the operator may do in a namespace that it watches: exactly the calls that it makes. */}}
{{- define "gala-operator.rules" -}}
- apiGroups: [gala.dev]
  resources: [galaruns]
  verbs: [list, watch, delete]  # delete: ttlSecondsAfterFinished
- apiGroups: [gala.dev]
  resources: [galaruns/status]
  verbs: [patch]
- apiGroups: [gala.dev]
  resources: [galaruns/finalizers]
  verbs: [update]  # owner references that block the owner's deletion need it where that admission plugin is on
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- define "gala-operator.pdbApiVersion" -}}
{{- if .Capabilities.APIVersions.Has "policy/v1" }}policy/v1{{ else }}policy/v1beta1{{ end }}
{{- end }}
