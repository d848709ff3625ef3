{{/* The pod: the same for Deployment, StatefulSet and the check of `helm test`. */}}

{{/* What Pod Security's "restricted" wants of a container. Fixed on purpose. */}}
{{- define "capvec.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "capvec.podTemplate" -}}
metadata:
  labels:
    {{- /* No version among them: a release that changes nothing of the pod replaces none. */}}
    {{- toYaml (merge (include "capvec.selectorLabels" . | fromYaml) (default dict .Values.podLabels) (default dict .Values.commonLabels)) | nindent 4 }}
  annotations:
    {{- toYaml (merge (include "capvec.configAnnotations" . | fromYaml) (default dict .Values.podAnnotations) (dict "kubectl.kubernetes.io/default-container" "capvec")) | nindent 4 }}
spec:
  {{- include "capvec.podSpec" (dict "root" . "command" "run") | nindent 2 }}
{{- end -}}

{{/* root: the chart's context; command: "run", or "check", which ends by itself. */}}
{{- define "capvec.podSpec" -}}
{{- $command := .command -}}
{{- $root := .root -}}
{{- with .root -}}
automountServiceAccountToken: false
serviceAccountName: {{ include "capvec.serviceAccountName" . | quote }}
# A Service called capvec would put its address into variables that look like the worker's own.
enableServiceLinks: false
{{- if eq $command "run" }}
terminationGracePeriodSeconds: {{ include "capvec.gracePeriod" . }}
{{- else }}
restartPolicy: Never
{{- end }}
securityContext:
  runAsNonRoot: true
  seccompProfile: {type: RuntimeDefault}
  {{- range $key, $id := .Values.podSecurity }}
  {{- if not (kindIs "invalid" $id) }}
  {{ $key }}: {{ int64 $id }}
  {{- end }}
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and .Values.topologySpread (eq $command "run") }}
topologySpreadConstraints:
  {{- range .Values.topologySpread }}
  - {{ toYaml . | nindent 4 | trim }}
    labelSelector:
      matchLabels:
        {{- include "capvec.selectorLabels" $root | nindent 8 }}
    {{- if not (include "capvec.stateful" $root) }}
    # The pods of a rollout are spread among themselves, whatever the old ones do.
    matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
{{- end }}
{{- if eq .Values.model.source "fetch" }}
initContainers:
  - name: fetch-model
    {{- include "capvec.fetchContainer" . | nindent 4 }}
{{- end }}
containers:
  - name: capvec
    image: {{ include "capvec.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    {{- if and .Values.gpu.enabled (ne $command "run") }}
    # Without a GPU: the workers may hold them all, and this pod would wait for one.
    args: [{{ $command }}, --config, /etc/capvec/config/capvec.toml, --set, embed.device=cpu, --set, embed.device_bytes_max=0]
    {{- else }}
    args: [{{ $command }}, --config, /etc/capvec/config/capvec.toml]
    {{- end }}
    {{- $env := include "capvec.kafkaEnv" . | trim }}
    {{- if or $env .Values.extraEnv }}
    env:
      {{- with $env }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with .Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- end }}
    {{- with .Values.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- if eq $command "run" }}
    ports:
      - {name: admin, containerPort: {{ include "capvec.adminPort" . }}, protocol: TCP}
    startupProbe:
      httpGet: {path: /livez, port: admin}
      {{- toYaml .Values.probes.startup | nindent 6 }}
    readinessProbe:
      httpGet: {path: /readyz, port: admin}
      {{- toYaml .Values.probes.readiness | nindent 6 }}
    livenessProbe:
      httpGet: {path: /livez, port: admin}
      {{- toYaml .Values.probes.liveness | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "capvec.containerSecurity" . | nindent 6 }}
    resources:
      {{- eq $command "run" | ternary (include "capvec.resources" .) (toYaml .Values.resources) | nindent 6 }}
    volumeMounts:
      # The folder and not the file in it by subPath, which is a mount more that a kubelet has to make, and no other mount in it.
      - {name: config, mountPath: /etc/capvec/config, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      {{- if contains "name: kafka" (include "capvec.kafkaVolume" .) }}
      - {name: kafka, mountPath: /etc/capvec/kafka, readOnly: true}
      {{- end }}
      {{- if ne .Values.model.source "image" }}
      # What the package's volume lies in. The worker keeps what it measured of this machine beside the package: here,
      # while the pod lives, unless the package is a folder of the volume.
      - {name: models, mountPath: /models}
      {{- end }}
      {{- if eq .Values.model.source "pvc" }}
      - {name: package, mountPath: /models/package, readOnly: {{ .Values.model.pvc.readOnly }}}
      {{- else if eq .Values.model.source "imageVolume" }}
      - {name: package, mountPath: /models/package, readOnly: true}
      {{- end }}
      {{- with .Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: config
    downwardAPI:
      items:
        {{- range $name, $_ := include "capvec.configFiles" . | fromYaml }}
        - {path: {{ $name }}, fieldRef: {fieldPath: "metadata.annotations['capvec/{{ $name }}']"}}
        {{- end }}
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
  {{- with include "capvec.kafkaVolume" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if eq .Values.model.source "fetch" }}
  - name: models
    emptyDir: {sizeLimit: {{ .Values.model.fetch.sizeLimit }}}
  {{- if and .Values.model.fetch.existingSecret (eq .Values.model.fetch.from "oci") }}
  - name: registry
    secret:
      secretName: {{ .Values.model.fetch.existingSecret | quote }}
      defaultMode: 0440
      items: [{key: {{ .Values.model.fetch.keys.dockerConfig | quote }}, path: config.json}]
  {{- end }}
  {{- else if ne .Values.model.source "image" }}
  - name: models
    emptyDir: {sizeLimit: 16Mi}
  {{- end }}
  {{- if eq .Values.model.source "pvc" }}
  - name: package
    persistentVolumeClaim: {claimName: {{ .Values.model.pvc.claimName | quote }}, readOnly: {{ .Values.model.pvc.readOnly }}}
  {{- else if eq .Values.model.source "imageVolume" }}
  - name: package
    image:
      reference: {{ .Values.model.imageVolume.reference | quote }}
      {{- with .Values.model.imageVolume.pullPolicy }}
      pullPolicy: {{ . }}
      {{- end }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* The worker's resources, with the GPUs in the limits: an extended resource's request is its limit. */}}
{{- define "capvec.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.enabled -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits .Values.gpu.resourceName (int64 .Values.gpu.count) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
